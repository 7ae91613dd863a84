"""Make detectron2's random sampling a pure function of a seed and of each image's key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from detectron2.utils.events import EventStorage

__all__ = ["sampling", "seed_image"]

_current: ContextVar[tuple[int, tuple[int, ...] | None] | None] = ContextVar(
    "_current", default=None
)


@contextmanager
def sampling(seed: int, image_keys: Sequence[int] | None = None) -> Iterator[None]:
    """Make sampling of anchors and proposals a pure function of `seed`, image by image.

    detectron2 draws from torch's global generator, which is forked and restored here, and writes
    statistics to the innermost event storage, without which it fails.

    Args:
        seed: of everything drawn inside.
        image_keys: one number per image of the batch; what is drawn for an image depends on its
            key and not on the images beside it. None numbers them.
    """
    token = _current.set((seed, None if image_keys is None else tuple(image_keys)))
    try:
        with torch.random.fork_rng(devices=[]), EventStorage():
            torch.manual_seed(seed)
            yield
    finally:
        _current.reset(token)


def seed_image(position: int, stage: int) -> None:
    """Seed the draws of one image in one stage of the detector; outside `sampling`, do nothing.

    Args:
        position: of the image in the batch.
        stage: any number that differs between the places that draw.
    """
    current = _current.get()
    if current is None:
        return
    seed, keys = current
    key = position if keys is None else keys[position]
    torch.manual_seed(int(np.random.SeedSequence([seed, key, stage]).generate_state(1)[0]))
