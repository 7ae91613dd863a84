"""The processes of one run: what they share, and how they are started."""
