from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.data.samples import REAL
from bsgal_train.detector import training_losses
from bsgal_train.detector.row_losses import RowLosses, recorded
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import PasteConfig, Recipe, SelectionConfig
from bsgal_train.selection import build_selection
from bsgal_train.selection.step import SelectionStep

SEED = 7


def build(detector: Any, reference: ClassMatchedReference, **options: Any) -> SelectionStep:
    recipe = Recipe(
        selection=SelectionConfig(mode="instance", reference="own_class", **options),
        paste=PasteConfig(pool="pool"),
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    return build_selection(recipe, detector, reference, update)


def own_row_gradient(detector: Any, rows: RowLosses, chosen: Tensor, class_index: int) -> Tensor:
    layer = detector.roi_heads.box_predictor.cls_score
    weight, bias = torch.autograd.grad(
        rows.total(chosen), [layer.weight, layer.bias], retain_graph=True
    )
    return torch.cat([weight[class_index], bias[class_index : class_index + 1]])


def class_rows(detector: Any, samples: list[TrainingSample]) -> RowLosses:
    with recorded() as rows:
        training_losses(
            detector, [s.pasted for s in samples], "fp32", SEED, [s.position for s in samples]
        )
    return next(one for one in rows if one.kind == "cls")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_instances_are_compared_with_real_objects_of_their_class(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    rows = class_rows(detector, samples)
    assert rows.rows.class_index is not None
    real = {
        index: own_row_gradient(
            detector, rows, (rows.rows.source == REAL) & (rows.rows.class_index == index), index
        )
        for index in range(3)
    }
    step = build(detector, reference, images_per_class=0, threshold=-1.0)
    first = step(detector, samples, 1, SEED)
    second = step(detector, samples, 2, SEED)

    assert {row.verdict for row in first.decisions} == {"no_evidence"}
    compared = 0
    decisions = iter(second.decisions)
    for position, sample in enumerate(samples):
        for number, paste in enumerate(sample.pastes):
            found = next(decisions).contribution
            chosen = (rows.rows.image == position) & (rows.rows.source == number)
            own = own_row_gradient(detector, rows, chosen, paste.class_index)
            if own.any() and real[paste.class_index].any():
                assert found == pytest.approx(cosine(own, real[paste.class_index]), abs=1e-4)
                compared += 1
            else:
                assert found is None
    assert compared >= 2


def test_every_class_is_visited_before_the_first_step_and_once_only(
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visited: list[int] = []
    of_classes = ClassMatchedReference.of_classes

    def spy(self: Any, class_indices: Any, *arguments: Any) -> Any:
        visited.extend(class_indices)
        return of_classes(self, class_indices, *arguments)

    monkeypatch.setattr(ClassMatchedReference, "of_classes", spy)
    step = build(detector, reference, images_per_class=3)
    first = step(detector, samples, 1, SEED)
    assert sorted(visited) == sorted(3 * reference.drawable)
    assert any(row.contribution is not None for row in first.decisions)

    n_before = len(visited)
    step(detector, samples, 2, SEED)
    restored = build(detector, reference, images_per_class=3)
    restored.load_state_dict(step.state_dict())
    assert restored(detector, samples, 3, 9).decisions == step(detector, samples, 3, 9).decisions
    assert len(visited) == n_before


def test_the_threshold_is_what_real_objects_score(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, images_per_class=2, real_kept_share=0.75)
    step(detector, samples, 1, SEED)
    window = step.state_dict()["judge"]["policy"]["recent"]
    n_now = len(window)
    assert n_now >= 3
    assert all(-1 <= score <= 1 for score in window)

    after = step(detector, samples, 2, SEED)
    threshold = after.decisions[0].threshold
    assert threshold == pytest.approx(np.quantile(window, 0.25))
    assert len(step.state_dict()["judge"]["policy"]["recent"]) > n_now
    for row in after.decisions:
        if row.contribution is not None:
            expected = "accept" if row.contribution >= threshold else "reject"
            assert row.verdict == expected


def test_groups_have_thresholds_of_their_own(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, images_per_class=2, per_group=True)
    step(detector, samples, 1, SEED)
    step(detector, samples, 2, SEED)
    policies = step.state_dict()["judge"]["policy"]
    assert sum(len(one["recent"]) > 0 for one in policies.values()) >= 2


def test_rejected_instances_give_no_loss(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, images_per_class=2, threshold=1.0)
    selected = step(detector, samples, 1, SEED)
    assert any(row.verdict == "reject" for row in selected.decisions)
    accepting = build(detector, reference, images_per_class=2, threshold=-1.0)
    everything = accepting(detector, samples, 1, SEED)
    left, whole = (float(one.losses["loss_cls"].detach()) for one in (selected, everything))
    assert math.isfinite(left)
    assert left < whole
