"""Which hops a session uses: the cheapest path over peers.

Measured are round trips; peers that failed are avoided for a while.
"""
