"""Which blocks this node hosts, and what it announces."""
