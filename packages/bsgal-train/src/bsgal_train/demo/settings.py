"""What the demo does, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Sizes of the demo; the defaults fit 12 minutes on two cores."""

    seed: int = 0
    """Seed of everything random."""
    images_per_category: int = 8
    """Generated images per category; about 40 categories."""
    num_inference_steps: int = 20
    """Denoising steps per image."""
    train_steps: int = 120
    """Training steps of each arm, continuing the shipped baseline."""
    threads: int = 2
    """Processor threads of every stage."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: if a size is below one.
        """
        for name in ("images_per_category", "num_inference_steps", "train_steps", "threads"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
