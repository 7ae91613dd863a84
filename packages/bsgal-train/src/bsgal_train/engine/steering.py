"""What a run's training finds out, turned into what it draws next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_paste import InstancePool
from bsgal_train.data import DrawPolicy, DrawTable
from bsgal_train.recipe import SelectionConfig
from bsgal_train.selection import SelectionStep
from bsgal_train.selection.modes.rows import RowSelection
from bsgal_train.selection.scoring.evidence import EvidenceScoring

__all__ = ["SteeredDraws", "Steering", "evidence_steering"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """How a run chooses the instances that it pastes.

    Attributes:
        weights: called with the pool and the number of steps done, gives one draw weight of at
            least 0 per instance of the pool, `(len(pool),)`, in the order of positions: at 0
            before the first step, and after every `publish_every`-th step. All processes of a run
            have to come to the same weights, and a resumed run to those of an uninterrupted one.
        publish_every: steps from one time to the next; samples follow one to two such periods
            later. At least two for each loader process, or these have to wait.
    """

    weights: Callable[[InstancePool, int], npt.ArrayLike]
    publish_every: int = 100


class SteeredDraws:
    """The draw table of a run, kept up to date by its steering.

    Args:
        pool: as it is drawn from.
        steering: asked for the first weights now.
        batch_size: samples of a step, of all processes together.

    Attributes:
        table: what the samples are drawn by.

    Raises:
        ValueError: if the weights or a number make no sense.
    """

    def __init__(self, pool: InstancePool, steering: Steering, batch_size: int) -> None:
        self._pool = pool
        self._weights = steering.weights
        self.table = DrawTable(
            len(pool),
            batch_size=batch_size,
            publish_every=steering.publish_every,
            initial=steering.weights(pool, 0),
        )

    def after_step(self, step: int) -> None:
        """Publish what is known after `step` steps, where it is time; in all processes."""
        if step % self.table.publish_every == 0:
            self.table.publish(step, self._weights(self._pool, step))

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that later samples are drawn by."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.table.load_state_dict(state)


def evidence_steering(config: SelectionConfig, selection: SelectionStep) -> Steering | None:
    """Return what draws by a mode's own evidence; None where it has none or is not to steer."""
    if config.effective_reference != "evidence" or not config.steer:
        return None
    assert isinstance(selection, RowSelection)
    scoring = selection.scoring
    assert isinstance(scoring, EvidenceScoring)
    policy = DrawPolicy(min_looks=config.min_looks)

    def weights(pool: InstancePool, step: int) -> npt.NDArray[np.float32]:
        positions = np.arange(len(pool))
        table = scoring.table([pool.instance_id(position) for position in positions.tolist()])
        return policy.weights(table.looks, table.verdicts, pool.category_ids_of(positions))

    return Steering(weights=weights, publish_every=config.publish_every)
