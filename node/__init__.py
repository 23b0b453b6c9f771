"""What one volunteer's machine does: loads, computes, serves and shows. Imports swarm and protocols."""
