from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bsgal_train.data import ClassMatchedReference, TrainingSample
from bsgal_train.data.samples import REAL
from bsgal_train.detector import build_detector, training_losses
from bsgal_train.detector.row_losses import BACKGROUND, RowLosses, recorded
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.recipe import PasteConfig, Recipe, SelectionConfig
from bsgal_train.selection import build_selection
from bsgal_train.selection.reject import losses_without
from bsgal_train.selection.step import Selected, SelectionStep

KEYS = [0, 1]


def build(
    detector: Any, reference: ClassMatchedReference, mode: Any = "instance", /, **options: Any
) -> SelectionStep:
    if mode in ("image", "instance"):
        options = {"reference": "in_batch", **options}
    if mode in ("batch", "image", "instance"):
        options = {"layers": "heads", **options}
    recipe = Recipe(
        selection=SelectionConfig(mode=mode, **options),
        paste=PasteConfig(pool="pool"),
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    return build_selection(recipe, detector, reference, update)


def run(step: SelectionStep, detector: Any, samples: list[TrainingSample], n: int = 1) -> Selected:
    return step(detector, samples, n, 7)


def record(detector: Any, samples: list[TrainingSample]) -> tuple[dict[str, Tensor], Any]:
    with recorded() as rows:
        losses = training_losses(detector, [s.pasted for s in samples], "fp32", 7, KEYS)
    return losses, rows


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def head_parameters(detector: Any) -> dict[str, Tensor]:
    heads = ("box_head", "box_predictor", "mask_head")
    return {
        name: parameter
        for name, parameter in detector.named_parameters()
        if name.startswith(tuple(f"roi_heads.{head}." for head in heads))
    }


def flat_gradient(loss: Tensor, detector: Any, layers: str) -> Tensor:
    parameters = [
        parameter
        for name, parameter in head_parameters(detector).items()
        if layers == "heads" or "predictor" in name
    ]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).double().flatten()
            for g, p in zip(found, parameters, strict=True)
        ]
    )


def share(rows: list[RowLosses], chosen: Any) -> Tensor:
    kinds = ("cls", "box", "mask")
    return torch.stack([r.total(chosen(r.rows)) for r in rows if r.kind in kinds]).sum()


def expected_dots(
    detector: Any, samples: list[TrainingSample], layers: str = "heads"
) -> list[tuple[float, float] | None]:
    """Return dot product and cosine with the real rows of each pasted object, one by one."""
    _, rows = record(detector, samples)
    real = flat_gradient(share(rows, lambda r: r.source == REAL), detector, layers)
    found: list[tuple[float, float] | None] = []
    for position, sample in enumerate(samples):
        for number in range(len(sample.pastes)):
            own = flat_gradient(
                share(
                    rows,
                    lambda r, p=position, n=number: (r.image == p) & (r.source == n),
                ),
                detector,
                layers,
            )
            dot = float(real @ own)
            norm = float(real.norm() * own.norm())
            found.append((dot, dot / norm) if norm else None)
    return found


@pytest.mark.parametrize("form", ["cosine", "dot"])
@pytest.mark.parametrize("layers", ["heads", "last"])
def test_contributions_are_those_of_one_gradient_per_instance(
    form: Any,
    layers: str,
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
) -> None:
    expected = expected_dots(detector, samples, layers)

    selected = run(build(detector, reference, form=form, layers=layers), detector, samples)

    found = [row.contribution for row in selected.decisions]
    assert len(found) == sum(len(s.pastes) for s in samples) >= 2
    assert any(one is not None for one in expected)
    for value, pair in zip(found, expected, strict=True):
        if pair is None:
            assert value is None
        else:
            assert value == pytest.approx(pair[form == "cosine"], rel=1e-3, abs=1e-6)


def test_an_instance_without_a_matched_row_is_no_evidence_and_trained_on(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    # Its box is moved to where no proposal is, and annotated boxes are not proposals.
    detector.roi_heads.proposal_append_gt = False
    detector.proposal_generator.post_nms_topk[True] = 4
    for sample in samples:
        image = sample.pasted
        pasted = image.source >= 0
        image.boxes_xyxy[pasted] = torch.tensor([62.0, 62.0, 63.0, 63.0])

    selected = run(build(detector, reference, threshold=1.0), detector, samples)

    assert {row.verdict for row in selected.decisions} == {"no_evidence"}
    losses, _ = record(detector, samples)
    assert numbers(selected.losses) == numbers(losses)


def test_accepting_everything_is_paste_all(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    all_losses = run(build(detector, reference, "paste_all"), detector, samples).losses
    for mode in ("instance", "image", "batch"):
        selected = run(build(detector, reference, mode, threshold=-1.0), detector, samples)

        assert {row.verdict for row in selected.decisions} <= {"accept", "no_evidence"}
        assert numbers(selected.losses) == numbers(all_losses)


def test_rejected_instances_give_no_loss_at_all(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    selected = run(build(detector, reference, threshold=1.0), detector, samples)

    assert {row.verdict for row in selected.decisions} == {"reject"}
    assert selected.statistics["n_pasted"] == 0
    _, rows = record(detector, samples)
    for one in rows:
        keep = one.rows.source == REAL
        for k in (one.rows.source == BACKGROUND).nonzero().flatten().tolist():
            image = samples[int(one.rows.image[k])].pasted
            left, top, right, bottom = one.rows.boxes_xyxy[k].tolist()
            inside = 0.0
            for box in image.boxes_xyxy[image.source >= 0].tolist():
                width = min(right, box[2]) - max(left, box[0])
                height = min(bottom, box[3]) - max(top, box[1])
                inside = max(inside, max(width, 0) * max(height, 0))
            keep[k] = inside < 0.5 * (right - left) * (bottom - top)
        expected = one.per_row[keep].sum() / one.normalizer
        torch.testing.assert_close(selected.losses[one.name], expected)


def test_the_rejected_pixels_do_not_move_the_heads(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    """No gradient comes back from a rejected object's rows."""
    losses, rows = record(detector, samples)
    inputs = [s.pasted for s in samples]
    rejected = [{0}, set()]
    without = torch.stack(list(losses_without(losses, rows, inputs, rejected).values())).sum()
    per_row = [one.per_row for one in rows]
    found = torch.autograd.grad(without, per_row)

    for one, gradient in zip(rows, found, strict=True):
        dropped = (one.rows.image == 0) & (one.rows.source == 0)
        assert dropped.any()
        assert (gradient[dropped] == 0).all()
        real = one.rows.source == REAL
        torch.testing.assert_close(
            gradient[real], torch.full_like(gradient[real], 1 / one.normalizer)
        )


def test_rejected_images_are_trained_on_without_their_pastes(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    selected = run(build(detector, reference, "image", threshold=1.0), detector, samples)

    assert {(row.verdict, row.granularity) for row in selected.decisions} == {("reject", "image")}
    _, rows = record(detector, samples)
    with recorded() as original:
        training_losses(detector, [s.original for s in samples], "fp32", 7, KEYS)
    divisors = {one.name: one.normalizer for one in rows}
    for one in original:
        expected = one.per_row.sum() / divisors[one.name]
        torch.testing.assert_close(selected.losses[one.name], expected)


def test_an_images_score_is_that_of_all_its_pastes(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    selected = run(build(detector, reference, "image", form="dot"), detector, samples)

    per_instance = expected_dots(detector, samples)
    first = sum(pair[0] for pair in per_instance[: len(samples[0].pastes)] if pair is not None)
    assert selected.decisions[0].contribution == pytest.approx(first, rel=1e-3)


def test_groups_are_judged_by_their_own_thresholds(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, threshold_by_group=(-1.0, 1.0, 1.0))

    decisions = run(step, detector, samples).decisions

    assert {row.frequency for row in decisions} == {"r", "c"}
    for row in decisions:
        if row.contribution is not None:
            assert row.verdict == ("accept" if row.frequency == "r" else "reject")


def test_the_step_form_has_no_evidence_before_the_first_step_and_loss_units_after(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    recipe = Recipe(
        selection=SelectionConfig(mode="instance", form="step", decay=0.0),
        paste=PasteConfig(pool="pool"),
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    step = build_selection(recipe, detector, reference, update)
    first = run(step, detector, samples)
    assert {row.verdict for row in first.decisions} == {"no_evidence"}

    torch.stack(list(first.losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    found = [row.contribution for row in run(step, detector, samples, 2).decisions]
    optimizer.param_groups[0]["lr"] = 2e-3
    doubled = [row.contribution for row in run(step, detector, samples, 3).decisions]

    pairs = [(a, b) for a, b in zip(found, doubled, strict=True) if a is not None]
    assert pairs
    # The cache remembers nothing, and the rate is twice as high.
    assert all(b == pytest.approx(2 * a, rel=1e-3) for a, b in pairs)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("instance", {"reference": "class_matched"}),
        ("instance", {"reference": "hybrid"}),
        ("image", {"reference": "class_matched"}),
        ("image", {"reference": "hybrid"}),
        ("batch", {}),
    ],
)
def test_class_matched_references_are_taken_every_so_many_steps(
    mode: str,
    options: dict[str, Any],
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    for_step = ClassMatchedReference.for_step

    def spy(self: Any, samples: Any, seed: int) -> Any:
        drawn.append(seed)
        return for_step(self, samples, seed)

    monkeypatch.setattr(ClassMatchedReference, "for_step", spy)
    step = build(detector, reference, mode, refresh_every=2, **options)

    for n in (1, 2, 3):
        selected = step(detector, samples, n, n)
        assert any(row.contribution is not None for row in selected.decisions)

    assert drawn == [1, 3]


def test_a_class_matched_reference_gives_the_trunk_no_graph(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, "batch")
    seen = []
    backbone = detector.backbone

    def spy(module: Any, args: Any, output: dict[str, Tensor]) -> None:
        seen.append(output["p2"].requires_grad)

    handle = backbone.register_forward_hook(spy)
    run(step, detector, samples)
    handle.remove()

    assert seen[0] is False
    assert seen[1] is True


def test_row_wise_memory_keeps_rows_of_absent_classes(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    step = build(detector, reference, rowwise=True)
    run(step, detector, samples)
    present = {
        index for s in samples for index in s.pasted.class_indices[s.pasted.source == REAL].tolist()
    }
    row_updates = step.state_dict()["scoring"]["cache"]["row_updates"]

    assert row_updates
    for updates in row_updates.values():
        assert {i for i, n in enumerate(updates.tolist()) if n} == present


@pytest.mark.parametrize("mode", ["instance", "image", "batch", "paste_random"])
def test_a_restored_selection_goes_on_alike(
    mode: str, detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    options = {} if mode == "paste_random" else {"policy": "quantile"}
    first = build(detector, reference, mode, **options)
    run(first, detector, samples)
    second = build(detector, reference, mode, **options)
    second.load_state_dict(first.state_dict())

    results = [run(one, detector, samples, 2) for one in (first, second)]

    assert results[0].decisions == results[1].decisions
    ignored = {"scoring_s"}
    statistics = [{k: v for k, v in one.statistics.items() if k not in ignored} for one in results]
    assert statistics[0] == statistics[1]


@pytest.mark.parametrize("mode", ["instance", "image", "batch", "paste_random", "oracle"])
def test_a_mode_leaves_weights_gradients_and_generator_alone(
    mode: str, detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    generator = torch.random.get_rng_state()

    run(build(detector, reference, mode), detector, samples)

    assert all(p.grad is None for p in detector.parameters())
    assert all(module.training for module in detector.modules())
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("granularity", ["batch", "image", "instance"])
@pytest.mark.parametrize("kept_share", [0.0, 1.0])
def test_a_random_share_of_nothing_or_all_is_a_control(
    granularity: Any,
    kept_share: float,
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
) -> None:
    step = build(
        detector, reference, "paste_random", granularity=granularity, kept_share=kept_share
    )

    selected = run(step, detector, samples)

    assert {row.verdict for row in selected.decisions} == {"accept" if kept_share else "reject"}
    if kept_share:
        control = run(build(detector, reference, "paste_all"), detector, samples)
    elif granularity == "instance":
        control = run(build(detector, reference, "instance", threshold=1.0), detector, samples)
    else:
        control = run(build(detector, reference, "none"), detector, samples)
    assert numbers(selected.losses) == numbers(control.losses)


def test_lots_fall_at_the_given_share(
    detector: Any,
    reference: ClassMatchedReference,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step: Any = build(detector, reference, "paste_random", kept_share=0.3)
    lots = [lot for seed in range(500) for lot in step._draw(seed, 3, 4)]

    assert sum(lots) / len(lots) == pytest.approx(0.3, abs=0.04)
    assert step._draw(5, 3, 4) == step._draw(5, 3, 4)


def test_the_oracle_logs_exact_differences(
    detector: Any, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    by_step = {}
    for oracle_step in ("alone", "in_batch"):
        step = build(detector, reference, "oracle", oracle_step=oracle_step)
        by_step[oracle_step] = [row.contribution for row in run(step, detector, samples).decisions]

    assert by_step["alone"] != by_step["in_batch"]
    for found in by_step.values():
        assert any(value is not None and value != 0 for value in found)


@pytest.mark.parametrize("mode", ["instance", "image", "batch", "paper", "paste_random", "oracle"])
def test_a_cascade_takes_part_in_every_mode(
    mode: str, tiny_recipe: Recipe, reference: ClassMatchedReference, samples: list[TrainingSample]
) -> None:
    recipe = tiny_recipe.override(
        "detector.architecture=centernet2", "detector.federated_classes=2"
    )
    torch.manual_seed(0)
    cascade = build_detector(recipe.detector, n_classes=3, image_counts=[3, 4, 5])

    options = {"reference": "hybrid"} if mode in ("image", "instance") else {}
    selected = run(build(cascade, reference, mode, **options), cascade, samples)

    assert all(loss.isfinite() for loss in selected.losses.values())
    assert len(selected.decisions) == sum(len(s.pastes) for s in samples)
    if mode != "paste_random":
        assert all(row.contribution is not None for row in selected.decisions)
