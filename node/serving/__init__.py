"""What a node computes for its clients: hosts, sessions, batches."""
