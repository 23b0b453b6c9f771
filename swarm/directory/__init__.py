"""Who serves what: announce it, withdraw it, and take a frozen look at what everybody announces."""
