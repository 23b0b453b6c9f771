"""Engines: steps of many sequences become one forward."""
