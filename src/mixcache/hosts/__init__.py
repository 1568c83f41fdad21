"""Those who bring calls to the core: a room for each."""
