"""Calls of tools: how models write them, and how clients do."""
