"""Text to tokens and back, in a process with limits."""
