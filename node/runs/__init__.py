"""A process's part in a training run: as a node or a trainer."""
