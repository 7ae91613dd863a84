"""Samples in which every instance of a pool is pasted, and read from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch.utils.data

from bsgal_paste import CopyPaste, InstancePool, ScaleRule
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.loaders import data_loader
from bsgal_train.data.look_plan import LookPlan
from bsgal_train.data.mapper import TrainingMapper
from bsgal_train.data.samples import TrainingSample

__all__ = ["build_look_loader"]


class _Listed:
    """The sampler of `CopyPaste` that gives what it was told to."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def sample(
        self, rng: np.random.Generator, target_category_ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        return np.array(self.positions, dtype=np.int64)


class _LookSet(torch.utils.data.Dataset[TrainingSample]):
    def __init__(self, plan: LookPlan, mapper: TrainingMapper, listed: _Listed) -> None:
        self._plan = plan
        self._mapper = mapper
        self._listed = listed

    def __getitem__(self, position: int) -> TrainingSample:
        self._listed.positions = self._plan.instances(position)
        return self._mapper(position, self._plan.image_index(position))


def build_look_loader(
    annotations: LvisAnnotations,
    crop: RandomCrop,
    pool: InstancePool,
    scale: ScaleRule,
    plan: LookPlan,
    *,
    seed: int,
    batches: list[list[int]],
    n_workers: int,
) -> Iterator[list[TrainingSample]]:
    """Return batches of samples, each a function of the plan, the seed and its position alone.

    Args:
        annotations: The training images.
        crop: How a crop of a real image is drawn.
        pool: Matched to the annotations.
        scale: Chooses the size of what is pasted.
        plan: Says what is pasted where.
        seed: Of crops and places.
        batches: Positions in the plan, batch by batch.
        n_workers: Loader processes; 0 loads in this process.
    """
    listed = _Listed()
    copy_paste = CopyPaste(pool, listed, scale, on_corrupt="skip")
    mapper = TrainingMapper(annotations, crop, seed=seed, copy_paste=copy_paste)
    looks = _LookSet(plan, mapper, listed)
    return iter(data_loader(looks, n_workers, batch_sampler=batches))
