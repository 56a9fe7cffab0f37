"""The server behind the page in app/. app.py starts it."""
