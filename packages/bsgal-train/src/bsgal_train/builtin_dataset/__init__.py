"""Provide the built-in long-tailed data set, made from installed packages only."""
