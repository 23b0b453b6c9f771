"""From a request of any API to its answers."""
