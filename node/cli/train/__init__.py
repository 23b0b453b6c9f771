"""The commands that train a model."""
