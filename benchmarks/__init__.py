"""Speed and memory against reference implementations: see README.md in this folder."""
