"""The commands of `swarm`, and what they print.

Third-party packages: typer, rich.
"""
