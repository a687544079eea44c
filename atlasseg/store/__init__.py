"""Content-addressed cache of results: keys, serialisation and eviction."""
