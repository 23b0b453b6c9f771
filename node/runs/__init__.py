"""A process in a training run: as a node or a trainer."""
