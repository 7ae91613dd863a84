from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bsgal_train.detector.row_losses import BACKGROUND, Rows, report
from bsgal_train.inspect.nonfinite_watch import BadLoss, BadOutput, NonFiniteWatch

NAN = float("nan")


class Root(nn.Module):
    """Has no finite gradient where its input is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Detector(nn.Module):
    """Two layers, and a loss with one row per number that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1)
        self.root = Root()
        nn.init.ones_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = Rows(
            source=torch.cat([one["source"] for one in inputs]),
            object=torch.cat([one["source"] for one in inputs]),
            image=torch.tensor([i for i, one in enumerate(inputs) for _ in one["source"]]),
            boxes_xyxy=torch.zeros(sum(len(one["source"]) for one in inputs), 4),
        )
        values = torch.cat([one["values"] for one in inputs])
        per_row = self.root(self.first(values[:, None]))[:, 0]
        loss = report(name="loss", kind="cls", per_row=per_row, count=1, rows=rows)
        return {"loss": loss}


def sample(image_id: int, values: list[float], source: list[int]) -> Any:
    given = {
        "image_id": image_id,
        "image": torch.zeros(3, 1, 1),
        "values": torch.tensor(values),
        "source": torch.tensor(source),
    }
    pastes = tuple(SimpleNamespace(instance_id=f"pasted-{i}") for i in range(max(source) + 1))
    pasted = SimpleNamespace(image=given["image"])
    return SimpleNamespace(given=given, pasted=pasted, pastes=pastes)


def watched(detector: Detector, samples: list[Any]) -> NonFiniteWatch:
    with NonFiniteWatch(detector, samples) as watch:
        detector([one.given for one in samples])["loss"].backward()
    return watch


def test_a_sound_step_has_nothing_to_tell() -> None:
    watch = watched(Detector(), [sample(7, [1.0, 4.0], [-1, 0])])

    assert watch.weights == ()
    assert watch.first_output is None
    assert watch.first_gradient is None
    assert watch.bad_losses() == []


def test_the_first_module_and_the_objects_are_named() -> None:
    # The root of a negative number is not a number.
    samples = [sample(7, [1.0, -1.0, -2.0, 2.0], [-1, 1, 1, 0]), sample(8, [-1.0], [BACKGROUND])]

    watch = watched(Detector(), samples)

    assert watch.first_output == BadOutput(
        module="root", kind="Root", finite_inputs=True, n_bad=3, n=5
    )
    assert watch.bad_losses() == [
        BadLoss(name="loss", image_id=7, instance="pasted-1", n_rows=2),
        BadLoss(name="loss", image_id=8, instance="background", n_rows=1),
    ]


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_named() -> None:
    watch = watched(Detector(), [sample(7, [0.0, 1.0], [-1, -1])])

    assert watch.first_output is None
    assert watch.first_gradient is not None
    assert watch.first_gradient.startswith("first.")


def test_a_weight_that_was_broken_before_is_named() -> None:
    detector = Detector()
    nn.init.constant_(detector.first.bias, NAN)

    watch = watched(detector, [sample(7, [1.0, 2.0], [-1, 0])])

    assert watch.weights == ("first.bias",)
    assert watch.first_output is not None
    assert watch.first_output.module == "first"
    assert watch.bad_losses() == [
        BadLoss(name="loss", image_id=None, instance="every row", n_rows=2)
    ]


def test_what_a_pass_had_computed_before_it_failed_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = Detector()
    samples = [sample(7, [-1.0, 1.0], [-1, -1])]

    def fail(module: nn.Module, inputs: Any, output: Any) -> None:
        raise FloatingPointError("diverged")

    detector.register_forward_hook(fail)
    with NonFiniteWatch(detector, samples) as watch, pytest.raises(FloatingPointError):
        detector([samples[0].given])

    assert watch.bad_losses() == [BadLoss(name="loss", image_id=7, instance="real", n_rows=1)]


def test_the_watch_leaves_no_hooks_behind() -> None:
    detector = Detector()
    watched(detector, [sample(7, [1.0], [-1])])

    for module in detector.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(not p._post_accumulate_grad_hooks for p in detector.parameters())
