"""The Python SDK and the octavo command line."""
