"""The report of a run: plots and one page, from its metrics."""
