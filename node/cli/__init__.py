"""The commands of `swarm`: what a person types, and what they read back. (doors: typer, rich)"""
