"""The swarm's phone book: hivemind's Kademlia in our own loop, with records that only their author can write. The door to hivemind.

Importing `node` or `protocol` takes 5 s (hivemind brings torch), so only a starting `Peer` does.
"""
