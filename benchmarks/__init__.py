"""Speed and memory, measured against rivals: see README.md here."""
