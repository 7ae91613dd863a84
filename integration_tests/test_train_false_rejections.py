"""What the benchmark `train_false_rejections` makes of looks and of p-values."""

from __future__ import annotations

import bench_train_false_rejections as bench
import numpy as np
import pytest

from bsgal_train.recipe import SelectionConfig
from bsgal_train.selection.scoring.looks import LOSSES, Looks

GROUPS = ["r", "c", "f"]


def looks(split: str, n_images: int, shift: float, seed: int) -> tuple[str, Looks]:
    rng = np.random.default_rng(seed)
    classes = np.tile(np.arange(3), n_images)
    n = len(classes)
    return split, Looks(
        ids=tuple(f"{k // 3}:{k}" for k in range(n)),
        classes=classes,
        is_real=np.ones(n, dtype=bool),
        features=rng.normal(size=(n, 4)).astype(np.float32),
        losses={name: np.exp(shift + rng.normal(size=n)).astype(np.float32) for name in LOSSES},
        visible_frac=np.ones(n, dtype=np.float32),
    )


SEEN = [
    looks(split, 60, shift, seed)
    for seed in range(3)
    for split, shift in (("training", 0.0), ("validation", 3.0))
]


@pytest.mark.parametrize("reference", ["held_out", "learnt"])
def test_no_image_is_on_both_sides_and_every_object_is_judged_once(reference: str) -> None:
    folds = list(bench.parts_of(SEEN, reference))
    assert len(folds) == 2
    for fold in folds:
        sides = {
            side: {
                name.split(":")[0]
                for looks, is_real in fold
                for name, real in zip(looks.ids, is_real.tolist(), strict=True)
                if real is side
            }
            for side in (True, False)
        }
        assert len(sides[True] | sides[False]) == 60
        assert not sides[True] & sides[False]
    objects = bench.judged(SEEN, reference, SelectionConfig(mode="instance"), GROUPS)
    assert len(objects) == 180


def test_objects_that_look_worse_than_what_was_learnt_show_only_against_that() -> None:
    config = SelectionConfig(mode="instance", sources=("mask_loss",))
    rate = {
        reference: {
            row["group"]: row["rate"]
            for row in bench.rows_of(
                bench.judged(SEEN, reference, config, GROUPS), reference, "mask_loss"
            )
            if row["alpha"] == 0.1
        }
        for reference in bench.REFERENCES
    }
    assert min(rate["training"].values()) > 0.8
    assert max(rate["held_out"].values()) < 0.25
    assert max(rate["learnt"].values()) < 0.25


def test_a_row_has_its_interval_and_passes_over_what_is_uncertain() -> None:
    certain = [("r", k / 100, True) for k in range(1, 101)]
    others = [("r", 0.001, False), ("c", 0.5, True), ("f", 0.5, True)]
    rows = bench.rows_of([*certain, *others], "training", bench.DEFAULT)
    (row,) = [one for one in rows if one["group"] == "r" and one["alpha"] == 0.05]
    assert (row["n"], row["n_uncertain"], row["n_rejected"]) == (100, 1, 5)
    assert row["low"] < 0.05 < row["high"]
    made = bench.tables({"rows": rows})
    assert "| `training` | 0.05 | 0.050 (0.016 to 0.113), n = 100 |" in made["levels"]
    assert bench.headline_of(rows)["training_r"] == 0.04
