"""What `scripts/bench inference` measures: one file a section, each against a reference in the same run."""
