"""Make what is drawn in a pass a pure function of a seed and of each image's key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

__all__ = ["image_draws", "sampling", "seed_image"]

_N_SEEDS = 1 << 32
"""Of `_image_seed`, from 0."""

_current: ContextVar[tuple[int, tuple[int, ...] | None] | None] = ContextVar(
    "_current", default=None
)


@contextmanager
def sampling(seed: int, image_keys: Sequence[int] | None = None) -> Iterator[None]:
    """Make sampling of anchors and proposals, and drop-path, functions of `seed`, image by image.

    detectron2 draws from torch's global generator, which is forked and restored here, and writes
    statistics to the innermost event storage, without which it fails.

    Args:
        seed: of everything drawn inside.
        image_keys: one number per image of the batch; what is drawn for an image depends on its
            key and not on the images beside it. Images of other steps, processes and parts of a
            step have other keys. None numbers them.
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
    if current is not None:
        torch.manual_seed(_image_seed(*current, position, stage))


def image_draws(n_images: int, stage: int) -> Tensor:
    """Return a number in [0, 1) for each image of the batch, float64 (n_images,) on the CPU.

    Outside `sampling`, torch's global generator is asked.

    Args:
        n_images: as many as `sampling` has keys, if it has.
        stage: any number that differs between the places that draw.
    """
    current = _current.get()
    if current is None:
        return torch.rand(n_images, dtype=torch.float64)
    keys = current[1]
    if keys is not None and len(keys) != n_images:
        raise ValueError(
            f"a layer that draws image by image was given {n_images} rows for {len(keys)} images; "
            "set detector.drop_path=0 with this backbone"
        )
    seeds = [_image_seed(*current, position, stage) for position in range(n_images)]
    return torch.tensor(seeds, dtype=torch.float64) / _N_SEEDS


def _image_seed(seed: int, keys: tuple[int, ...] | None, position: int, stage: int) -> int:
    key = position if keys is None else keys[position]
    return int(np.random.SeedSequence([seed, key, stage]).generate_state(1)[0])
