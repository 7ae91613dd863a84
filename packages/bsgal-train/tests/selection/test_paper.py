from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
from bsgal_score import GradientCache
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, RandomCrop, TrainingMapper, TrainingSample
from bsgal_train.detector import build_detector, training_losses
from bsgal_train.recipe import Recipe, SelectionConfig
from bsgal_train.selection import build_selection, paper
from bsgal_train.selection.class_losses import candidate_loss, gradients, reference_loss
from bsgal_train.selection.paper import PaperSelection

CROP = RandomCrop(crop_px=64)


@pytest.fixture
def annotations(tiny_data: Path) -> LvisAnnotations:
    return LvisAnnotations.load(tiny_data / "train.json", tiny_data)


@pytest.fixture
def samples(tiny_data: Path, annotations: LvisAnnotations) -> list[TrainingSample]:
    pool = InstancePool.open(tiny_data / "pool").match(annotations.categories)
    sampler = CategoryBalancedSampler(pool, count_range=(1, 3))
    copy_paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.3, 0.4)))
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=copy_paste)
    return [mapper(position, image_index=position) for position in range(2)]


@pytest.fixture
def detector(tiny_recipe: Recipe) -> Any:
    torch.manual_seed(0)
    return build_detector(tiny_recipe.detector, n_classes=3)


def selection(
    detector: Any, annotations: LvisAnnotations, threshold: float = -0.05
) -> PaperSelection:
    reference = ClassMatchedReference(annotations, CROP)
    return PaperSelection(detector, reference, SelectionConfig(threshold=threshold), "fp32")


def total(losses: dict[str, torch.Tensor]) -> float:
    return float(sum(value.detach() for value in losses.values()))


def loss_on(detector: Any, inputs: list[dict[str, Any]], seed: int) -> float:
    return total(training_losses(detector, inputs, "fp32", seed))


def test_the_contribution_is_the_cosine_of_cache_and_candidate(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations)(detector, samples, step=1, seed=7)

    real = ClassMatchedReference(annotations, CROP).batch(samples, np.random.default_rng(7))
    losses = (
        reference_loss(detector, real, "fp32"),
        candidate_loss(detector, [s.pasted for s in samples], "fp32", seed=7),
    )
    flat = []
    for loss in losses:
        assert loss is not None
        found = gradients(loss, detector).values()
        parameters = detector.parameters()
        flat.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).double().flatten()
                    for g, p in zip(found, parameters, strict=True)
                ]
            )
        )
    expected = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    assert selected.statistics["contribution"] == pytest.approx(expected, abs=1e-5)


def test_an_accepted_batch_is_trained_on_with_its_pastes(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations, threshold=-1.0)(detector, samples, 1, seed=7)

    assert total(selected.losses) == loss_on(detector, [s.pasted for s in samples], 7)
    assert {row.verdict for row in selected.decisions} == {"accept"}


def test_a_rejected_batch_is_trained_on_without_pastes(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations, threshold=1.0)(detector, samples, 1, seed=7)

    assert total(selected.losses) == loss_on(detector, [s.original for s in samples], 7)
    assert {row.verdict for row in selected.decisions} == {"reject"}
    assert selected.statistics["n_pasted"] == 0


def test_every_pasted_instance_has_a_row_with_the_verdict_of_the_batch(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations)(detector, samples, step=4, seed=7)

    pasted = [(s.original["image_id"], p.instance_id) for s in samples for p in s.pastes]
    assert [(row.image_id, row.instance_id) for row in selected.decisions] == pasted
    assert len({row.contribution for row in selected.decisions}) == 1
    assert {(row.step, row.granularity) for row in selected.decisions} == {(4, "batch")}


def test_a_batch_without_pastes_is_no_evidence(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    bare = [TrainingSample(s.position, s.original, s.original, ()) for s in samples]

    selected = selection(detector, annotations)(detector, bare, step=1, seed=7)

    assert selected.decisions == ()
    assert "contribution" not in selected.statistics
    assert "accepted_share" not in selected.statistics


def test_a_nonfinite_score_is_never_trained_on(
    detector: Any,
    annotations: LvisAnnotations,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GradientCache, "cosine", lambda self, gradients: math.nan)

    selected = selection(detector, annotations)(detector, samples, step=1, seed=7)

    assert {row.verdict for row in selected.decisions} == {"nonfinite"}
    assert total(selected.losses) == loss_on(detector, [s.original for s in samples], 7)


def test_the_cache_is_updated_before_it_is_compared(
    detector: Any,
    annotations: LvisAnnotations,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    for name in ("update", "cosine"):
        method = getattr(GradientCache, name)

        def spy(self: Any, *args: Any, _name: str = name, _method: Any = method) -> Any:
            calls.append(_name)
            return _method(self, *args)

        monkeypatch.setattr(GradientCache, name, spy)

    selection(detector, annotations)(detector, samples, step=1, seed=7)

    assert calls == ["update", "cosine"]


def test_no_scoring_gradient_reaches_the_parameters(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selection(detector, annotations)(detector, samples, step=1, seed=7)

    assert all(p.grad is None for p in detector.parameters())


def test_a_restored_selection_goes_on_alike(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    first = selection(detector, annotations)
    first(detector, samples, step=1, seed=7)
    second = selection(detector, annotations)
    second.load_state_dict(first.state_dict())

    results = [one(detector, samples, step=2, seed=8) for one in (first, second)]

    assert results[0].decisions == results[1].decisions
    assert results[0].decisions[0].contribution is not None


@pytest.mark.parametrize("mode", ["none", "paste_all"])
def test_the_controls_judge_nothing(
    mode: str,
    detector: Any,
    annotations: LvisAnnotations,
    samples: list[TrainingSample],
    tiny_recipe: Recipe,
) -> None:
    step = build_selection(
        tiny_recipe.override(f"selection.mode={mode}"),
        detector,
        ClassMatchedReference(annotations, CROP),
    )

    selected = step(detector, samples, step=1, seed=7)

    inputs = [s.pasted if mode == "paste_all" else s.original for s in samples]
    assert total(selected.losses) == loss_on(detector, inputs, 7)
    assert selected.decisions == ()
    assert step.state_dict() == {}


def test_every_departure_is_listed() -> None:
    assert "Departures from the released code" in (paper.__doc__ or "")
