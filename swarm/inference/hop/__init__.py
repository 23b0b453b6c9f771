"""The sessions at one node, which is a hop of theirs."""
