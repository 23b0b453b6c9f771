"""Which hops a session uses: the cheapest path over (peer, span), measured round trips, and whom to avoid for a while."""
