"""How a peer meets a swarm and stays in it."""
