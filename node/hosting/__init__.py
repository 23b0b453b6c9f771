"""One model at a node: its weights, and hosts for its blocks."""
