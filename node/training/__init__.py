"""Training on one machine: units, data, optimizers, checkpoints."""
