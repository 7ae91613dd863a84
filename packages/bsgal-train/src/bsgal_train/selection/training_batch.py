"""A step's samples, and the passes over them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from bsgal_train.data import LabelledImage, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.recipe import Precision
from bsgal_train.recipe.modes import Granularity
from bsgal_train.selection.numbering import Units

__all__ = ["TrainingBatch"]


class TrainingBatch:
    """This process's samples of a training step, or of a part of one.

    Args:
        detector: in training mode.
        samples: in their order.
        step: number of the step, from 1.
        seed: of everything drawn in the step.
        precision: of its passes.
        granularity: what shares a verdict.

    Attributes:
        detector: as given.
        samples: as given.
        step: as given.
        seed: as given.
        pasted: the images with all that was pasted.
        original: the images as they are annotated.
        keys: what the draws of each image follow.
        units: what is judged.
        scoring_s: seconds spent in `scoring`.
    """

    def __init__(
        self,
        detector: nn.Module,
        samples: Sequence[TrainingSample],
        step: int,
        seed: int,
        precision: Precision,
        granularity: Granularity,
    ) -> None:
        self.detector = detector
        self.samples = samples
        self.step = step
        self.seed = seed
        self._precision = precision
        self.pasted = [sample.pasted for sample in samples]
        self.original = [sample.original for sample in samples]
        self.keys = [sample.position for sample in samples]
        self.units = Units(samples, granularity)
        self.scoring_s = 0.0

    def losses(
        self, images: Sequence[LabelledImage], keys: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Return the detector's losses on some images, which must be all or have `keys`."""
        keys = self.keys if keys is None else keys
        return training_losses(self.detector, images, self._precision, self.seed, keys)

    def recorded_losses(
        self, images: Sequence[LabelledImage]
    ) -> tuple[dict[str, Tensor], list[RowLosses]]:
        """Return the detector's losses on all images, and the same row by row."""
        with recorded() as rows:
            losses = self.losses(images)
        return losses, rows

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Count the time of the block as spent on scores and verdicts."""
        began = time.perf_counter()
        yield
        self.scoring_s += time.perf_counter() - began
