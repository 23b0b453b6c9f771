"""Weights from peers: a manifest, small files, and verified pieces.

Only the pieces of the tensors that are needed are fetched. No torch here.
"""
