"""In which images a pool's instances are looked at, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["LookPlan"]

# Streams of random numbers.
_INSTANCES, _CLASSES, _IMAGE = range(3)


class LookPlan:
    """Give the image and the instances at each position of a screening.

    At first nothing is pasted, so that real objects are known when the first instance is looked at.
    Then, in each round, every instance is pasted once, in an order of its own. The images take
    turns between the classes, so that the real objects of a rare class are looked at as often as
    those of a frequent one. Everything is a pure function of the arguments and the position.

    Args:
        n_instances: Of the pool, at least 1.
        n_looks: Rounds, at least 1.
        per_image: Instances pasted into an image, at least 1.
        image_indices_of_class: The training images that hold each class; one at least holds some.
        n_visits: Images of each class at first, at least 0.
        seed: Of everything random.

    Raises:
        ValueError: A number is too small, or no image holds any class.
    """

    def __init__(
        self,
        n_instances: int,
        n_looks: int,
        per_image: int,
        image_indices_of_class: Sequence[npt.NDArray[np.int64]],
        *,
        n_visits: int = 0,
        seed: int,
    ) -> None:
        for name, number in (
            ("n_instances", n_instances),
            ("n_looks", n_looks),
            ("per_image", per_image),
        ):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}")
        if n_visits < 0:
            raise ValueError(f"`n_visits` must be at least 0, got {n_visits}")
        self._images = [images for images in image_indices_of_class if len(images)]
        if not self._images:
            raise ValueError("there must be a class that some image holds, to look at real objects")
        self._n_instances = n_instances
        self._n_looks = n_looks
        self._per_image = per_image
        self._per_round = -(-n_instances // per_image)
        self._n_before = n_visits * len(self._images)
        self._seed = seed
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self._n_before + self._n_looks * self._per_round

    def instances(self, position: int) -> list[int]:
        """Return the positions in the pool of what is pasted; fewer at the end of a round."""
        if self._checked(position) < self._n_before:
            return []
        number, place = divmod(position - self._n_before, self._per_round)
        order = self._order(_INSTANCES, number, self._n_instances)
        own: list[int] = order[place * self._per_image : (place + 1) * self._per_image].tolist()
        return own

    def image_index(self, position: int) -> int:
        """Return the index of the training image that is pasted into."""
        number, place = divmod(self._checked(position), len(self._images))
        images = self._images[int(self._order(_CLASSES, number, len(self._images))[place])]
        rng = np.random.default_rng([self._seed, _IMAGE, position])
        return int(images[rng.integers(len(images))])

    def _checked(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"the plan has positions 0 to {len(self) - 1}, not {position}")
        return position

    def _order(self, stream: int, number: int, n: int) -> npt.NDArray[np.int64]:
        """Return the order of a round; only the latest is kept."""
        if stream not in self._orders or self._orders[stream][0] != number:
            rng = np.random.default_rng([self._seed, stream, number])
            self._orders[stream] = number, rng.permutation(n)
        return self._orders[stream][1]
