from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bsgal_score import GradientCache
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, LabelledImage, RandomCrop, TrainingSample
from bsgal_train.detector import build_detector, training_losses
from bsgal_train.detector.agreement import agreed
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import PasteConfig, Recipe, SelectionConfig
from bsgal_train.selection import SelectionStep, build_selection, training_batch
from bsgal_train.selection.modes import paper
from bsgal_train.selection.modes.paper import PaperSelection
from bsgal_train.selection.scoring.passes import candidate_loss, gradients, reference_loss

CROP = RandomCrop(crop_px=64)


def selection(
    detector: Any, annotations: LvisAnnotations, threshold: float | None = None, **options: Any
) -> SelectionStep:
    reference = ClassMatchedReference(annotations, CROP)
    config = SelectionConfig(mode="paper", threshold=threshold, **options)
    recipe = Recipe(selection=config, paste=PasteConfig(pool="pool"))
    optimizer = torch.optim.AdamW(detector.parameters())
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    return build_selection(recipe, detector, reference, update)


def total(losses: dict[str, torch.Tensor]) -> float:
    return float(sum(value.detach() for value in losses.values()))


def loss_on(detector: Any, images: list[LabelledImage], seed: int) -> float:
    return total(training_losses(detector, images, "fp32", seed))


def test_the_contribution_is_the_cosine_of_cache_and_candidate(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    selected = selection(detector, annotations)(detector, samples, step=1, seed=7)

    real = ClassMatchedReference(annotations, CROP).for_step(samples, 7)
    losses = (
        reference_loss(detector, real, "fp32", seed=5),
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

    pasted = [(s.original.image_id, p.instance_id) for s in samples for p in s.pastes]
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
    optimizer = torch.optim.AdamW(detector.parameters())
    step = build_selection(
        tiny_recipe.override(f"selection.mode={mode}"),
        detector,
        ClassMatchedReference(annotations, CROP),
        OptimizerStep(detector, optimizer, tiny_recipe.optimizer, "fp32"),
    )

    selected = step(detector, samples, step=1, seed=7)

    inputs = [s.pasted if mode == "paste_all" else s.original for s in samples]
    assert total(selected.losses) == loss_on(detector, inputs, 7)
    assert selected.decisions == ()
    assert step.state_dict() == {}


def test_every_departure_is_listed() -> None:
    assert "Departures from the released code" in (paper.__doc__ or "")


# A recorded toy batch: gradients of three steps, and what the released formulas make of them,
# worked out by hand. c starts at zero, c <- 0.1 c + 0.9 g, then cos(c, k) >= -0.05 accepts.
RECORDED = [
    # reference g, candidate k, cosine, verdict
    ((3.0, 4.0), (4.0, 3.0), 24 / 25, "accept"),
    # c = (0.27, 0.36) + (0, -3.6) = (0.27, -3.24)
    ((0.0, -4.0), (0.0, 1.0), -3.24 / math.hypot(0.27, 3.24), "reject"),
    # c = (0.027, -0.324) + (0.9, 0.324) = (0.927, 0): (-5, 100) has cosine -0.04994
    ((1.0, 0.36), (-5.0, 100.0), -5 / math.hypot(5, 100), "accept"),
    # c = (0.0927, 0) + (0.9, 0) = (0.9927, 0): (-6, 100) has cosine -0.05989
    ((1.0, 0.0), (-6.0, 100.0), -6 / math.hypot(6, 100), "reject"),
]


def test_the_released_formulas_hold_on_a_recorded_batch(
    detector: Any,
    annotations: LvisAnnotations,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    toy = torch.nn.Module()
    toy.register_parameter("weight", weight)
    recorded = iter([g for reference, candidate, *_ in RECORDED for g in (reference, candidate)])

    def loss(*args: Any, **options: Any) -> torch.Tensor:
        return (weight * torch.tensor(next(recorded))).sum()

    monkeypatch.setattr(paper, "reference_loss", loss)
    monkeypatch.setattr(paper, "candidate_loss", loss)
    monkeypatch.setattr(training_batch, "training_losses", lambda *args: {"loss": weight.sum()})
    step = selection(toy, annotations)

    for number, (_, _, cosine, verdict) in enumerate(RECORDED, start=1):
        decisions = step(toy, samples, number, seed=number).decisions
        assert {row.verdict for row in decisions} == {verdict}
        assert {row.threshold for row in decisions} == {-0.05}
        assert decisions[0].contribution == pytest.approx(cosine, abs=1e-6)


def test_the_released_quantile_keeps_the_share_and_reads_before_it_pushes(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample], monkeypatch: Any
) -> None:
    scores = iter([0.1, 0.2, 0.3, 0.05])
    monkeypatch.setattr(PaperSelection, "_update_cache", lambda *args: None)
    monkeypatch.setattr(PaperSelection, "_contribution", lambda *args: next(scores))
    step = selection(detector, annotations, policy="quantile", kept_share=0.5, threshold=0.0)

    rows = [step(detector, samples, number, seed=1).decisions[0] for number in (1, 2, 3, 4)]

    # Medians of the scores before: none (0), {0.1}, {0.1, 0.2}, {0.1, 0.2, 0.3}.
    assert [row.threshold for row in rows] == pytest.approx([0.0, 0.1, 0.15, 0.2])
    assert [row.verdict for row in rows] == ["accept", "accept", "accept", "reject"]


def test_a_batch_without_pastes_scores_zero_where_the_released_code_is_asked_for(
    detector: Any, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    bare = [TrainingSample(s.position, s.original, s.original, ()) for s in samples]

    for option, contribution in (("zero", 0.0), ("no_evidence", None)):
        selected = selection(detector, annotations, nothing_to_judge=option)(detector, bare, 1, 7)
        assert selected.statistics.get("contribution") == contribution


def test_the_reference_covers_all_classes_unless_masked(
    tiny_recipe: Recipe, annotations: LvisAnnotations, samples: list[TrainingSample]
) -> None:
    torch.manual_seed(0)
    federated = build_detector(
        tiny_recipe.override("detector.federated_classes=1").detector, 3, image_counts=[1, 1, 1]
    )
    one_object = samples[0].original.only(slice(1))

    losses = [
        reference_loss(federated, [one_object], "fp32", seed=5, all_classes=all_classes)
        for all_classes in (True, False)
    ]

    assert losses[0] is not None
    assert losses[1] is not None
    assert float(losses[0].detach()) > float(losses[1].detach())


def test_other_steps_draw_other_classes_for_a_federated_reference(
    tiny_recipe: Recipe, samples: list[TrainingSample]
) -> None:
    torch.manual_seed(0)
    federated = build_detector(
        tiny_recipe.override("detector.federated_classes=2").detector, 3, image_counts=[1, 1, 1]
    )
    one_object = samples[0].original.only(slice(1))

    drawn = set()
    for seed in range(8):
        with agreed() as agreements:
            reference_loss(federated, [one_object], "fp32", seed)
        drawn.add(tuple(agreements["classes of loss_cls"].tolist()))

    # The object's own class, and each of the two others by turns.
    own = int(one_object.class_indices)
    assert drawn == {tuple(sorted({own, other})) for other in range(3) if other != own}
