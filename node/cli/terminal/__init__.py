"""What commands share of a terminal: lines, waits, keys, prompts."""
