"""The octavo command line."""
