"""Which hops a session uses: the cheapest path over peers.

Round trips are measured; a peer that failed is avoided for a while.
"""
