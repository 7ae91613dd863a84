"""Looks at every instance of a pool, forward only, in an order that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from bsgal_paste import NormalScale
from bsgal_train.annotations.derived import scale_statistics
from bsgal_train.data import TrainingSample
from bsgal_train.data.look_loader import build_look_loader
from bsgal_train.data.look_plan import LookPlan
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import recorded
from bsgal_train.engine.assembly import Assembly, training_crop
from bsgal_train.engine.step import step_seed
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.scoring.looks import Looks, looks_at, recorded_features
from bsgal_train.selection.steady import steady_backbone

__all__ = ["Looking"]

_IMAGES_PER_BATCH = 4
"""As images of a batch are padded to the largest, what is found depends on those beside it: so the
batches are the same whatever the machine."""

_BATCHES_PER_ROUND = 8
"""Of each process, between exchanges."""

_VISITS = 4
"""Images of each class that are looked at before anything is pasted."""


class Looking:
    """Look at every instance of a pool, each pasted into some training images, and at real objects.

    The detector is in training mode, so that proposals are matched to objects and have losses, with
    nothing random in the backbone; no gradient is computed. As many instances are pasted into an
    image as are in training on average.

    Args:
        recipe: Its data, paste and detector settings count, and its seed.
        assembly: Of the recipe, with a pool.
        n_looks: Looks at each instance. One that cannot be seen, for example as it is too small at
            the size drawn, has fewer.

    Attributes:
        n_batches: How many batches there are.
        n_images: How many images are in them.
    """

    def __init__(self, recipe: Recipe, assembly: Assembly, n_looks: int) -> None:
        assert assembly.pool is not None, "a recipe without a pool is refused before"
        self._recipe = recipe
        self._assembly = assembly
        self._plan = LookPlan(
            len(assembly.pool),
            n_looks,
            -(-recipe.paste.max_instances // 2),
            assembly.annotations.image_indices_of_class,
            n_visits=_VISITS,
            seed=recipe.schedule.seed,
        )
        self.n_images = len(self._plan)
        self.n_batches = -(-self.n_images // _IMAGES_PER_BATCH)

    def n_images_in(self, n_batches: int) -> int:
        """Return how many images the first batches hold."""
        return min(n_batches * _IMAGES_PER_BATCH, self.n_images)

    def rounds(self, first_batch: int = 0) -> Iterator[list[Looks]]:
        """Yield the looks of some batches at a time, the same in every process and in order.

        How the batches are shared between processes, and how many come at a time, changes none of
        them.

        Args:
            first_batch: Where to go on.
        """
        n, rank = processes.n_processes(), processes.rank()
        all_numbers = range(first_batch, self.n_batches)
        samples = iter(self._samples(all_numbers[rank::n]))
        size = n * _BATCHES_PER_ROUND
        for start in range(0, len(all_numbers), size):
            numbers = all_numbers[start : start + size]
            own = [(number, self._look(next(samples), number)) for number in numbers[rank::n]]
            found = dict(pair for part in processes.gather(own) for pair in part)
            yield [found[number] for number in numbers]

    def _samples(self, numbers: Sequence[int]) -> Iterator[list[TrainingSample]]:
        annotations, sha256 = self._assembly.annotations, self._assembly.annotations_sha256
        pool = self._assembly.pool
        assert pool is not None, "a recipe without a pool is refused before"
        batches = [
            list(range(number * _IMAGES_PER_BATCH, self.n_images_in(number + 1)))
            for number in numbers
        ]
        return build_look_loader(
            annotations,
            training_crop(self._recipe.data),
            pool,
            NormalScale(statistics=scale_statistics(annotations.path, sha256)),
            self._plan,
            seed=self._recipe.schedule.seed,
            batches=batches,
            n_workers=self._recipe.data.n_workers,
        )

    @torch.no_grad()
    def _look(self, samples: Sequence[TrainingSample], number: int) -> Looks:
        detector: nn.Module = self._assembly.detector.train()
        inputs = [sample.pasted for sample in samples]
        keys = [sample.position for sample in samples]
        seed = step_seed(self._recipe.schedule.seed, number)
        precision = self._recipe.detector.precision
        # Divisors and the classes of a federated loss are this batch's, whoever runs it.
        with (
            processes.alone(),
            steady_backbone(detector),
            recorded() as rows,
            recorded_features(detector) as features,
        ):
            training_losses(detector, inputs, precision, seed, keys)
        return looks_at(rows, features[0], samples)
