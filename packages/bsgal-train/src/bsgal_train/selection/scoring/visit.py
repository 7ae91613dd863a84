"""Real images of every class, once before the first step, so that there is something to compare."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from bsgal_train.data import LabelledImage
from bsgal_train.processes import group as processes
from bsgal_train.selection.setup import Setup

__all__ = ["ClassVisit"]

logger = logging.getLogger(__name__)

_PASSES_PER_LINE = 20


class ClassVisit:
    """Go once in a run through real images of every class.

    Args:
        setup: of the run; `selection.images_per_class` says how many.

    Attributes:
        is_done: whether it has been gone through; part of what a resumed run needs.
    """

    def __init__(self, setup: Setup) -> None:
        schedule = setup.recipe.schedule
        self._reference = setup.reference
        self._images_per_class = setup.config.images_per_class
        # As many images as the step runs at once.
        self._images_per_pass = len(processes.share(schedule.batch_size)) // schedule.n_accumulate
        self.is_done = False

    def passes(self, seed: int) -> Iterator[tuple[list[LabelledImage], Sequence[int]]]:
        """Yield this process's images of pass after pass, each with the key of its draws.

        Every process has as many passes as any other: they share what is found. Nothing is left
        of a visit that is done.
        """
        if self.is_done:
            return
        self.is_done = True
        classes = self._reference.drawable * self._images_per_class
        n, size = processes.n_processes(), self._images_per_pass
        n_own = -(-len(classes) // n)
        own = list(islice(cycle(classes), processes.rank(), n * n_own, n))
        keys = range(processes.rank(), n * n_own, n)
        for number, images in enumerate(self._reference.of_classes(own, seed, keys, size)):
            first = number * size
            if number % _PASSES_PER_LINE == 0:
                logger.info("visited %d of %d real images to compare with", n * first, n * n_own)
            yield images, keys[first : first + size]
