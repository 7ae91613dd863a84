"""Small loss: the model's own loss as the score, which needs neither a cache nor real data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ._policies import LinearSchedule, judge
from ._verdict import Decision
from .errors import StateMismatchError


class SmallLoss:
    """Train on the share `kept_share` of a step's units with the smallest losses.

    A network learns right labels before it memorises wrong ones, so that wrong ones have the larger
    losses for a while (the selection rule of Co-teaching, Han et al. 2018, algorithm 1, line 4). It
    has to know about how many are wrong, and fails where wrong labels agree with one another.

    A unit is kept if its loss is at most the `kept_share` quantile (linear between neighbours) of
    the losses of its step and of the `window` losses before. A decision's `contribution` is the
    loss times -1, and its threshold likewise: more is better, as in every policy.

    Args:
        kept_share: Share to keep, in [0, 1]: one less the share of wrong units. A `LinearSchedule`
            from 1.0 lets the model learn before it judges; `step` moves it.
        window: Number of earlier losses to compare with. 0 compares within a step, as is usual;
            more is for steps with a few units.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> policy = SmallLoss(0.5)
        >>> [decision.verdict.value for decision in policy.decide_many([0.1, 2.0, 0.3, 4.0])]
        ['accept', 'reject', 'accept', 'reject']
    """

    def __init__(self, kept_share: float | LinearSchedule, window: int = 0) -> None:
        self._schedule = (
            kept_share if isinstance(kept_share, LinearSchedule)
            else LinearSchedule(kept_share, kept_share, total_steps=1)
        )  # fmt: skip
        ends = (self._schedule.start, self._schedule.end)
        if not all(0.0 <= share <= 1.0 for share in ends):
            raise ValueError(f"`kept_share` must lie in [0, 1], got {ends[0]} to {ends[1]}")
        if window < 0:
            raise ValueError(f"`window` must be at least 0, got {window}")
        self.window = int(window)
        self._recent: deque[float] = deque(maxlen=self.window)

    @property
    def kept_share(self) -> float:
        """The share to keep now."""
        return self._schedule.value

    def decide(self, loss: float | None) -> Decision:
        """Judge one unit that is a step of its own: without a `window` it is kept."""
        return self.decide_many([loss])[0]

    def decide_many(self, losses: Sequence[float | None]) -> list[Decision]:
        """Judge the units of a step, in any order.

        Args:
            losses: Each unit's own loss; None where there is none. Neither these nor losses that
                are not finite count among the others.
        """
        finite = [float(x) for x in losses if x is not None and math.isfinite(x)]
        # Sorted, so that what is remembered does not depend on the order of the units.
        finite.sort(reverse=True)
        largest = _quantile([*self._recent, *finite], self.kept_share)
        self._recent.extend(finite)
        return [judge(None if x is None else -float(x), -largest) for x in losses]

    def step(self) -> None:
        """Move the schedule of the kept share on by one training step, if there is one."""
        self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the remembered losses, oldest first."""
        return {
            "schedule": self._schedule.state_dict(),
            "window": self.window,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateMismatchError: If it was saved with other settings.
        """
        if state.get("window") != self.window:
            raise StateMismatchError(
                f"the saved state has window {state.get('window')}, this object has {self.window}; "
                "make it with the saved settings"
            )
        self._schedule.load_state_dict(state["schedule"])
        self._recent = deque(state["recent"], maxlen=self.window)


def _quantile(values: list[float], share: float) -> float:
    """Interpolate linearly between neighbours, as `numpy.quantile`; 0 of nothing."""
    if not values:
        return 0.0
    values.sort()
    position = share * (len(values) - 1)
    below = math.floor(position)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    return low + (high - low) * (position - below)
