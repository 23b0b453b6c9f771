"""The commands that host a model, or serve one by HTTP."""
