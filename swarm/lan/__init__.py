"""Neighbours on a local network, found without an address.

The extra `lan`: py-libp2p.
"""
