"""Weights from peers: a manifest, the small files, and verified pieces of exactly the tensors that are needed; no torch here."""
