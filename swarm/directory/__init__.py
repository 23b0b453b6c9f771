"""Which peers serve what: announce, withdraw, and read a snapshot."""
