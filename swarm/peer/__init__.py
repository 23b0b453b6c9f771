"""A peer of the swarm: identity, DHT, connections and server."""
