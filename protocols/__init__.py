"""What peers say: bytes and their meaning.

No sockets, files, clock, tasks, randomness or models in this package.
"""
