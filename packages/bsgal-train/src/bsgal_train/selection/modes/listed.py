"""`listed`: reject the instances that a file names, whatever the detector makes of them.

For verdicts from elsewhere, such as somebody who leafed through the pool. A rejected instance is
still pasted, and gives no loss; to paste others in its place, leave it out of the pool instead.
"""

from __future__ import annotations

import json
from pathlib import Path

from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.setup import Setup
from bsgal_train.selection.step import Judged, JudgingStep
from bsgal_train.selection.training_batch import TrainingBatch

__all__ = ["ListedSelection", "read_ids"]


class ListedSelection(JudgingStep):
    """Accept what `selection.rejected_ids` does not name.

    Args:
        setup: of the run.

    Raises:
        ValueError: the file of ids is missing or holds something else.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._rejected = read_ids(Path(setup.config.rejected_ids))

    def _judged_losses(self, batch: TrainingBatch) -> Judged:
        accepts = [
            paste.instance_id not in self._rejected
            for sample in batch.samples
            for paste in sample.pastes
        ]
        verdicts = self._judge.note(batch.units, accepts)
        losses, rows = batch.recorded_losses(batch.pasted)
        rejected = batch.units.rejected(accepts)
        return losses_without(losses, rows, batch.pasted, rejected), verdicts


def read_ids(path: Path) -> frozenset[str]:
    """Return the instance ids in a JSON file: those of a list, or the keys of an object.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    form = 'give a JSON list of instance ids, such as ["127-0004"], or an object with such keys'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"selection.rejected_ids={path} cannot be read ({error.strerror}): {form}"
        ) from None
    except ValueError as error:
        raise ValueError(f"selection.rejected_ids={path} is not JSON ({error}): {form}") from None
    if not isinstance(found, list | dict) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"selection.rejected_ids={path} holds something else: {form}")
    return frozenset(found)
