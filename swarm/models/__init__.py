"""Slicing any Hugging Face causal language model by blocks: checkpoint files, loading, sizes, digests."""
