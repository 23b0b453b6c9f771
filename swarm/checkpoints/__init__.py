"""Checkpoints on disk: files, tensors, digests; no torch, no network."""
