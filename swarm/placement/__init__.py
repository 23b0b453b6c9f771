"""Which blocks a node should host: pure functions of a snapshot."""
