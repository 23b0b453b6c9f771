"""Clients' gradients through the blocks that this node serves."""
