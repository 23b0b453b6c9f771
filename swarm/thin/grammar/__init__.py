"""Grammars that keep an answer to a form."""
