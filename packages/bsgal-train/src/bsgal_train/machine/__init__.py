"""What a machine needs before anything runs: detectron2, and a look at the rest."""
