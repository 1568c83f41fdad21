"""Which rules of the method pay: `python -m studies.study`."""
