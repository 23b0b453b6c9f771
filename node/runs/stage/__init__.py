"""A node's part in a run, and the units that it trains."""
