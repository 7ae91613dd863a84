"""What a finished or failed run is looked at with."""
