"""Units: who owns a loaded module and its parameters."""
