"""How trainers and stages act together in one training run."""
