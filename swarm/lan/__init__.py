"""Neighbours on a local network, found without an address (the extra `lan`: py-libp2p)."""
