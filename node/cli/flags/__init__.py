"""Options: flags, the environment, the file; and what they mean."""
