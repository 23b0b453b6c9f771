"""Who asks, and how much: keys, budgets, places."""
