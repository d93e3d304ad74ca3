"""The router: tokenizes, finds the engine that holds the prefix, streams text back."""
