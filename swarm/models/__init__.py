"""Hugging Face causal language models, cut by blocks: files, loading, sizes, digests."""
