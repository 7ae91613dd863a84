"""Where the cache is heading: from the difference of its last two states."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import StateMismatchError

if TYPE_CHECKING:
    from ._cache import GradientCache


class Extrapolation:
    """The cache as it would be after the next step, had it no lag, if it goes on as it last did.

    Between two updates the reference gradient changes by H times the step between them, so the
    difference of two states is H s for the last step s. A cache of decay d lags d / (1 - d) updates
    behind, so c̃ = c + (c - c₋₁) / (1 - d) is aimed one step ahead.

    It follows one cache, the first that it is shown, as long as that exists. Memory: two copies of
    the cache.
    """

    def __init__(self) -> None:
        self._followed: weakref.ref[GradientCache] | None = None
        self._latest: tuple[int, dict[str, Tensor]] | None = None
        self._before: tuple[int, dict[str, Tensor]] | None = None

    def ahead(self, cache: GradientCache) -> dict[str, Tensor]:
        """Return c̃ by parameter name; the cache itself before it has been seen twice.

        Raises:
            ValueError: If the cache is a plain mean, whose course says nothing about one step, or
                not the one that is followed.
            StateMismatchError: If the saved states are of another cache.
        """
        if cache.mode != "decay":
            raise ValueError(
                "reference_at='extrapolated' needs a cache with mode='decay', got mode='mean'"
            )
        self._follow(cache)
        if self._latest is None or self._latest[0] != cache.n_updates:
            self._before = self._latest
            self._latest = (
                cache.n_updates,
                {name: cache[name].clone() for name in cache.names},
            )
        if self._before is None:
            return {name: cache[name] for name in cache.names}
        n_before, before = self._before
        n_steps = (1.0 / (1.0 - cache.decay)) / (cache.n_updates - n_before)
        return {name: cache[name] + n_steps * (cache[name] - before[name]) for name in cache.names}

    def _follow(self, cache: GradientCache) -> None:
        """Forget what was seen if it was of a cache that is gone, or of this one's future."""
        followed = None if self._followed is None else self._followed()
        if followed is not None and followed is not cache:
            raise ValueError(
                "reference_at='extrapolated' follows the course of one cache, and was shown "
                "another before; make a StepModel for each cache"
            )
        if self._latest is not None:
            n_updates, tensors = self._latest
            if self._followed is None and set(tensors) != set(cache.names):
                raise StateMismatchError(
                    f"the saved step model has seen a cache of {sorted(tensors)[:3]}..., this one "
                    f"is of {sorted(cache.names)[:3]}..."
                )
            is_gone = self._followed is not None and followed is None
            if is_gone or cache.n_updates < n_updates:
                self._latest = self._before = None
        self._followed = weakref.ref(cache)

    def state_dict(self) -> dict[str, Any]:
        """Return both states; the tensors are this object's own memory."""
        return {
            key: None if state is None else {"n_updates": state[0], "tensors": dict(state[1])}
            for key, state in (("latest", self._latest), ("before", self._before))
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved states."""
        latest, before = (
            None
            if saved is None
            else (int(saved["n_updates"]), {n: t.clone() for n, t in saved["tensors"].items()})
            for saved in (state["latest"], state["before"])
        )
        self._latest, self._before = latest, before
        self._followed = None
