"""The training loop, one step of it, and what a step is made of."""
