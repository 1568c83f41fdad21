"""A page to try it: plain and cached side by side. `studio.py` generates, `page.py` shows (extra `web`)."""
