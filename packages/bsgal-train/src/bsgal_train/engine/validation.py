"""Predict on the images of an annotation file, in one or several processes, and evaluate."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import build_test_loader
from bsgal_train.engine.hooks import FinishedStep, Hook
from bsgal_train.engine.predict import predict_each
from bsgal_train.engine.progress import Progress
from bsgal_train.evaluation import LvisResult, PredictionShards, PredictionWriter, evaluate_lvis
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.layout import RunFolder

__all__ = ["ValidateOnTheWay", "Validation", "validate"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What came of predicting on validation images.

    Attributes:
        result: LVIS numbers, the same object in every process.
        skipped: how often an image could not be read, by a text that says which and why; their
            objects count as not found.
    """

    result: LvisResult
    skipped: dict[str, int]


def validate(
    detector: nn.Module,
    annotations: LvisAnnotations,
    recipe: Recipe,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Validation:
    """Predict on every image and evaluate.

    Every process predicts on its share of the images and writes a shard; nothing is gathered but
    the result, which the first process computes.

    Args:
        detector: from `build_detector`; left in the mode it was in.
        annotations: the images and what is in them.
        recipe: its detector and loader settings count.
        folder: where the shards go, seen by all processes (`PredictionShards` reads them).
        progress: told after every image of this process: images done, in all, and a text.
    """
    rank, n_processes = processes.rank(), processes.n_processes()
    loader = build_test_loader(
        annotations,
        image_px=recipe.detector.image_px,
        image_short_px=recipe.detector.image_short_px,
        n_workers=recipe.data.n_workers,
        process=rank,
        n_processes=n_processes,
    )
    with processes.first_before_others():
        # Shards of an earlier evaluation, perhaps by more processes.
        for shard in folder.glob("process-*") if rank == 0 else ():
            shutil.rmtree(shard)
    with PredictionWriter(folder, rank, n_processes) as writer:
        predict_each(
            detector,
            loader,
            [category.category_id for category in annotations.categories],
            writer.add,
            recipe.detector.precision,
            None if progress is None else lambda done: progress(done, len(loader), "predicting"),
        )
    skipped = loader.skipped.share()
    if skipped:
        logger.warning("%d validation images could not be read and count as empty", len(skipped))
    # Not before all shards are written, which the sharing above has waited for.
    result = evaluate_lvis(annotations.path, PredictionShards(folder)) if rank == 0 else None
    result = processes.broadcast(result)
    assert result is not None, "the first process has evaluated"
    return Validation(result=result, skipped=skipped)


class ValidateOnTheWay(Hook):
    """Evaluate every `schedule.eval_every` steps, and record `val/ap` and its groups.

    Args:
        annotations: the images and what is in them.
    """

    def __init__(self, annotations: LvisAnnotations) -> None:
        self._annotations = annotations

    def after_step(self, step: FinishedStep) -> None:
        """Evaluate if it is time."""
        if step.number % step.recipe.schedule.eval_every:
            return
        predictions = RunFolder(step.folder).predictions_on_the_way(step.number)
        with step.averaged():
            found = validate(step.detector, self._annotations, step.recipe, predictions)
        metrics = found.result.metrics["segm"]
        if processes.rank() == 0:
            shutil.rmtree(predictions)
        values = {name: getattr(metrics, name) for name in ("ap", "apr", "apc", "apf")}
        logger.info("step %d: mask %s", step.number, values)
        step.record({f"val/{name}": value for name, value in values.items() if value is not None})
