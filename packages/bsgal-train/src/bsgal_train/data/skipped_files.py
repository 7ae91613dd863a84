"""What could not be read in a run, counted over all its processes and starts."""

from __future__ import annotations

import logging
from collections import Counter

from bsgal_train.processes import group as processes

__all__ = ["SkippedFiles"]

logger = logging.getLogger(__name__)


class SkippedFiles:
    """Count images and pool instances that cannot be read, by a text that says which and why.

    Each is logged once in a process.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._shared: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one time that something could not be read."""
        if reason not in self._own and reason not in self._shared:
            logger.warning("skipped: %s", reason)
        self._own[reason] += 1

    def share(self) -> dict[str, int]:
        """Return the counts of all processes by reason, in order; all processes have to call it."""
        for counts in processes.gather(list(self._own.items())):
            self._shared.update(dict(counts))
        self._own.clear()
        return self.state_dict()

    def state_dict(self) -> dict[str, int]:
        """Return the counts of all processes up to the last `share`."""
        return dict(sorted(self._shared.items()))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from what `state_dict` returned."""
        self._own.clear()
        self._shared = Counter(state)
