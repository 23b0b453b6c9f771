"""A run's data: text, tokens, batches."""
