"""What `scripts/bench inference` measures, one file a section.

Each is measured against a reference in the same run.
"""
