"""Measures the engine in process, and its peers beside it: `python -m octavo_engine.bench`, or `octavo bench`."""
