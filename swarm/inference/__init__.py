"""A session over many hops.

Steps go down, replies come back, and failures in between change no token.
"""
