"""What a swarm looks like to one who watches it."""
