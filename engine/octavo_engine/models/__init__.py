"""Decoder-only models from Hugging Face directories: configuration, weights and one forward pass for all of them."""
