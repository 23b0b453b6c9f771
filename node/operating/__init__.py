"""Orders of the operators whom a node's owner has listed."""
