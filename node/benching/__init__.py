"""What this machine and a route are worth to a swarm, measured."""
