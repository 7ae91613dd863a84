"""The selection modes, one class each."""
