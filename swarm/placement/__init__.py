"""Which blocks a volunteer should host: pure decisions over a snapshot of the swarm."""
