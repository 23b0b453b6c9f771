"""Checks of this machine and its way into a swarm."""
