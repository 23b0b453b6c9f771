"""A node's device: one thread, one memory budget, kinds of work."""
