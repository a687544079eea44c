"""A cache of results by the content of their inputs: keys, serialisation and eviction."""
