"""The contract between the units: messages, page hash, names of spans, metrics and log keys."""
