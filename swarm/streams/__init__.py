"""Streams of messages between peers, and how they are dialled."""
