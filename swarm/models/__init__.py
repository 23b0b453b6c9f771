"""Hugging Face causal language models, cut by blocks: loading, parts, sizes."""
