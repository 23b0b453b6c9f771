"""The DHT: hivemind's Kademlia in our own event loop.

Only its author can write a record. Only this package imports hivemind.

Importing `node` or `protocol` takes 5 s (hivemind brings torch), so only a starting `Peer` does.
"""
