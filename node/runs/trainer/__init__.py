"""A process that feeds data to a run."""
