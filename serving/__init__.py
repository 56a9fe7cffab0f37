"""The server behind the page: app.py starts it, the page itself is in app/."""
