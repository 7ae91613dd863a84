"""Scores that do not depend on which blocks of the backbone a step happens to skip.

`paper` scores in passes of its own, in which the backbone is at rest, and trains with drop-path as
any other run. Others score the very pass that is trained on (`ModeSpec.scores_the_training_pass`):
it either has drop-path, and equal instances get unequal scores, or it has none. It has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["steady_backbone"]


@contextmanager
def steady_backbone(detector: Any) -> Iterator[None]:
    """Switch off what is random in the backbone inside the block; gradients flow as before."""
    was_training = detector.backbone.training
    detector.backbone.eval()
    try:
        yield
    finally:
        detector.backbone.train(was_training)
