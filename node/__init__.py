"""One volunteer's machine: loads, computes, serves and shows.

Imports swarm and protocols.
"""
