"""The commands that show a swarm."""
