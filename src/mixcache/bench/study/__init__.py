"""Which rules of the method pay: `python -m mixcache.bench.study`."""
