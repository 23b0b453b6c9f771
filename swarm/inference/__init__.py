"""A session over many hops: steps go down, replies come back, and deaths in between change no token."""
