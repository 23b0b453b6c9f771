"""A process's part in a training run: as a node, as a trainer, or as all of it."""
