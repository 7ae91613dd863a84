from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bsgal_score import GradientCache
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, RandomCrop, TrainingSample
from bsgal_train.detector import training_losses
from bsgal_train.recipe import PasteConfig, Recipe, SelectionConfig
from bsgal_train.selection import build_selection, paper
from bsgal_train.selection.paper import PaperSelection
from bsgal_train.selection.scoring_losses import candidate_loss, gradients, reference_loss

CROP = RandomCrop(crop_px=64)


def selection(
    detector: Any, annotations: LvisAnnotations, threshold: float | None = None, **options: Any
) -> PaperSelection:
    reference = ClassMatchedReference(annotations, CROP)
    config = SelectionConfig(mode="paper", threshold=threshold, **options)
    recipe = Recipe(selection=config, paste=PasteConfig(pool="pool"))
    optimizer = torch.optim.AdamW(detector.parameters())
    return PaperSelection(detector, reference, recipe, optimizer)


def total(losses: dict[str, torch.Tensor]) -> float:
    return float(sum(value.detach() for value in losses.values()))


def loss_on(detector: Any, inputs: list[dict[str, Any]], seed: int) -> float:
    return total(training_losses(detector, inputs, "fp32", seed))


def test_the_contribution_is_the_cosine_of_cache_and_candidate(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations)(detector, samples, step=1, seed=7)

    real = ClassMatchedReference(annotations, CROP).for_step(samples, 7)
    losses = (
        reference_loss(detector, real, "fp32"),
        candidate_loss(detector, [s.pasted for s in samples], "fp32", seed=7),
    )
    flat = []
    for loss in losses:
        assert loss is not None
        found = gradients(loss, dict(detector.named_parameters())).values()
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
        torch.optim.AdamW(detector.parameters()),
    )

    selected = step(detector, samples, step=1, seed=7)

    inputs = [s.pasted if mode == "paste_all" else s.original for s in samples]
    assert total(selected.losses) == loss_on(detector, inputs, 7)
    assert selected.decisions == ()
    assert step.state_dict() == {}


def test_every_departure_is_listed() -> None:
    assert "Departures from the released code" in (paper.__doc__ or "")
