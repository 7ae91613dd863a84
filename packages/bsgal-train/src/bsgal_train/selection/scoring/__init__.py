"""How one forward pass gives every unit its contribution."""
