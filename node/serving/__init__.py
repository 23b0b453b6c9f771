"""What a node computes for others: engines (how steps of many rows become one forward) and what feeds them."""
