"""Runs on random halves of a pool, and what their results have to do with scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_study.filters import copy_pool
from train_study.pools import StudyPool
from train_study.score_table import Scores

__all__ = ["Half", "Halves", "chosen_half", "correlation", "sums"]

N_BOOTSTRAP = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Half:
    """A finished run on one half.

    Attributes:
        ids: instances of the half.
        values: `balanced_real_loss` and mask AP by group.
    """

    ids: frozenset[str]
    values: Mapping[str, float]


class Halves:
    """Runs of `paste_all` that differ in the half of the pool that they paste, and in nothing else.

    Args:
        state: folder of all that is made, with the data set.
        pool: to halve.
        start: folder of the detector that every run starts from.
        n_steps: of a run.
        batch_size: images per step.
    """

    def __init__(
        self, state: Path, pool: StudyPool, start: Path, *, n_steps: int, batch_size: int
    ) -> None:
        self._dataset = state / "dataset"
        self._folder = state / "halves" / f"{pool.name}-{start.name}-{n_steps}x{batch_size}"
        self._pool = pool
        self._start = start
        self._n_steps = n_steps
        self._batch_size = batch_size

    def run(self, number: int) -> Half:
        """Train and evaluate on one half, or find what came of it."""
        ids = chosen_half(self._pool.groups, self._categories(), number)
        folder = self._folder / f"{number:04d}"
        outcome = folder / "outcome.json"
        if not outcome.is_file():
            values = self._train(folder, ids)
            temporary = outcome.with_suffix(".tmp")
            temporary.write_text(json.dumps(values), encoding="utf-8")
            temporary.replace(outcome)
            # The weights and the copy of the pool are large, and can be made again.
            for one in ("run", "pool"):
                shutil.rmtree(folder / one)
            print({"half": number, **{k: round(v, 4) for k, v in values.items()}}, flush=True)
        return Half(ids, json.loads(outcome.read_text(encoding="utf-8")))

    def _train(self, folder: Path, ids: Collection[str]) -> dict[str, float]:
        from bsgal_train.engine.run import train
        from bsgal_train.recipe.library import load_recipe

        pool = copy_pool(self._pool.folder, folder / "pool", lambda row: row["instance_id"] in ids)
        recipe = load_recipe("builtin_continue").override(
            f"data.builtin_root={self._dataset}",
            f"detector.init={self._start}",
            "optimizer.lr=1e-3",
            f"paste.pool={pool}",
            "selection.mode=paste_all",
            f"schedule.n_steps={self._n_steps}",
            f"schedule.batch_size={self._batch_size}",
        )
        result = train(recipe, folder / "run")
        assert result.evaluation is not None, "the built-in set has validation images"
        metrics = result.evaluation.metrics["segm"]
        of_class = real_losses(folder / "run", self._dataset)
        return {
            "balanced_real_loss": float(np.mean(list(of_class.values()))),
            **{name: float(getattr(metrics, name) or 0.0) for name in ("ap", "apr", "apc", "apf")},
        }

    def _categories(self) -> dict[str, int]:
        lines = (self._pool.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["instance_id"]: row["category_id"] for row in map(json.loads, lines)}


def chosen_half(
    ids: Collection[str], category_of: Mapping[str, int], number: int
) -> frozenset[str]:
    """Return a random half of every category's instances, the same for the same number."""
    rng = np.random.default_rng([number, len(ids)])
    by_category: dict[int, list[str]] = {}
    for one in sorted(ids):
        by_category.setdefault(category_of[one], []).append(one)
    chosen: set[str] = set()
    for own in by_category.values():
        chosen |= {own[i] for i in rng.permutation(len(own))[: (len(own) + 1) // 2]}
    return frozenset(chosen)


def real_losses(run: Path, dataset: Path) -> dict[int, float]:
    """Return for each class index the mean loss of its objects in the validation images.

    The loss of an object is the sum of its classification, box and mask loss, each the mean over
    its proposals. Every validation image is looked at once, at training's crops.
    """
    import torch

    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.detector import training_losses
    from bsgal_train.detector.row_losses import recorded
    from bsgal_train.engine.assembly import assemble
    from bsgal_train.recipe.library import load_recipe
    from bsgal_train.selection.scoring.looks import LOSSES, looks_at, recorded_features
    from bsgal_train.selection.steady import steady_backbone

    recipe = load_recipe("builtin_continue").override(
        f"data.train_json={dataset / 'annotations/lvis_val.json'}",
        f"data.image_root={dataset / 'images'}",
        f"detector.init={run}",
        "selection.mode=none",
    )
    annotations = LvisAnnotations.load(recipe.data.train_json, recipe.data.image_root)
    assembly = assemble(recipe, annotations)
    detector = assembly.detector.train()
    n_batches = -(-len(annotations.images) // recipe.schedule.batch_size)
    of_class: dict[int, list[float]] = {}
    for number, samples in zip(range(n_batches), assembly.batches(0), strict=False):
        keys = [sample.position for sample in samples]
        inputs = [sample.original for sample in samples]
        with (
            torch.no_grad(), steady_backbone(detector), recorded() as rows,
            recorded_features(detector) as features,
        ):  # fmt: skip
            training_losses(detector, inputs, recipe.detector.precision, number, keys)
        looks = looks_at(rows, features[0], samples)
        total = np.sum([looks.losses[name] for name in LOSSES], axis=0)
        for index, value in zip(looks.classes.tolist(), total.tolist(), strict=True):
            if np.isfinite(value):
                of_class.setdefault(index, []).append(value)
    return {index: float(np.mean(own)) for index, own in of_class.items()}


def sums(halves: Sequence[Half], scores: Scores) -> NDArray[np.float64]:
    """Return the sum of a score over each half; instances without a score have the mean of all."""
    mean = float(np.mean(list(scores.values())))
    return np.array([sum(scores.get(one, mean) for one in half.ids) for half in halves])


def correlation(x: Any, y: Any) -> dict[str, float]:
    """Return Spearman's rank correlation with a bootstrap interval over the halves.

    Args:
        x: (n halves,).
        y: the same.

    Returns:
        `spearman`, `low` and `high`; NaN where one of the two is constant.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)

    def spearman(chosen: NDArray[np.int64]) -> float:
        a, b = rankdata(x[chosen]), rankdata(y[chosen])
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            return np.nan
        return float(np.corrcoef(a, b)[0, 1])

    drawn = np.random.default_rng(0).integers(len(x), size=(N_BOOTSTRAP, len(x)))
    values = np.array([spearman(one) for one in drawn])
    values = values[np.isfinite(values)]
    edges = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(values, edges) if len(values) else (np.nan, np.nan)
    return {"spearman": spearman(np.arange(len(x))), "low": float(low), "high": float(high)}
