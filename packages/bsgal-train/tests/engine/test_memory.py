from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, RandomCrop
from bsgal_train.detector import build_detector
from bsgal_train.engine import assembly, memory
from bsgal_train.engine.memory import available_bytes, check_memory
from bsgal_train.engine.optimizer import build_optimizer
from bsgal_train.engine.run import train
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.errors import TooLittleMemoryError
from bsgal_train.recipe import Recipe
from bsgal_train.selection import build_selection


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe


@pytest.fixture
def reference(tiny_data: Path) -> ClassMatchedReference:
    annotations = LvisAnnotations.load(tiny_data / "train.json", tiny_data)
    return ClassMatchedReference(annotations, RandomCrop(crop_px=64))


def build(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(recipe.detector, n_classes=3)


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state dict, however deep they are, that hold numbers with a point."""
    if isinstance(state, Tensor) and state.is_floating_point():
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def held_bytes(state: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(state))


@pytest.mark.parametrize("architecture", ["mask_rcnn", "centernet2"])
@pytest.mark.parametrize(
    ("changes", "compared_bytes"),
    [
        (("selection.mode=paste_all",), 0),
        (("selection.mode=paste_all", "optimizer.ema_decay=0.9"), 0),
        (("selection.mode=paper",), 4),
        (("selection.mode=batch",), 4),
        (("selection.mode=batch", 'selection.losses=["cls"]'), 4),
        (("selection.mode=image", "optimizer.ema_decay=0.9"), 4),
        (("selection.mode=image", "selection.layers=heads"), 4),
        (("selection.mode=image", "selection.cache_dtype=bf16"), 4),
        (("selection.mode=instance", "selection.reference=in_batch"), 4),
        # It compares one class's row at a time.
        (("selection.mode=instance", "selection.reference=own_class"), 0),
    ],
)
def test_what_a_run_holds_is_refused_one_byte_below(
    architecture: str,
    changes: tuple[str, ...],
    compared_bytes: int,
    tiny_recipe: Recipe,
    reference: ClassMatchedReference,
) -> None:
    """The step's gradients and averages, the cache and a gradient like it, averaged weights."""
    recipe = tiny_recipe.override(f"detector.architecture={architecture}", *changes)
    detector = build(recipe)
    optimizer = build_optimizer(detector, recipe.optimizer)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    selection = build_selection(recipe, detector, reference, update)
    for p in detector.parameters():
        p.grad = torch.zeros_like(p)
    update.apply()
    cache = list(tensors(selection.state_dict()))
    needed = (
        sum(p.grad.nbytes for p in detector.parameters() if p.grad is not None)
        + sum(held_bytes(state["exp_avg"]) for state in optimizer.state.values())
        + sum(held_bytes(state["exp_avg_sq"]) for state in optimizer.state.values())
        + sum(tensor.nbytes + compared_bytes * tensor.numel() for tensor in cache)
        # While the averages are in place, the trained weights are kept.
        + 2 * held_bytes(update.state_dict()["average"])
    )

    check_memory(recipe, detector, needed)
    with pytest.raises(TooLittleMemoryError):
        check_memory(recipe, detector, needed - 1)


def test_the_message_says_what_would_fit(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(recipe)
    n = sum(p.numel() for p in detector.parameters())
    monkeypatch.setattr(memory, "_GIB", n)

    with pytest.raises(
        TooLittleMemoryError,
        match=r"at least 20\.00 GiB .* 12\.00 for gradients and AdamW, 8\.00 for the gradient "
        r"cache of selection\.mode=paper; a process can take 3\.00 GiB\. Alternatives: "
        r"selection\.mode=batch or instance.*paste_all.*a smaller detector\.backbone$",
    ):
        check_memory(recipe, detector, 3 * n)
    with pytest.raises(
        TooLittleMemoryError,
        match=r"at least 28\.00 GiB .*, 8\.00 for the averaged weights, .*optimizer\.ema_decay=0",
    ):
        check_memory(recipe.override("optimizer.ema_decay=0.99"), detector, 3 * n)
    with pytest.raises(TooLittleMemoryError, match=r"Alternatives: selection\.cache_dtype=bf16"):
        check_memory(recipe.override("selection.mode=image"), detector, 3 * n)
    with pytest.raises(TooLittleMemoryError, match=r"selection\.layers=last"):
        check_memory(
            recipe.override("selection.mode=image", "selection.layers=heads"), detector, 3 * n
        )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(TooLittleMemoryError, match="fewer --processes on this machine"):
        check_memory(recipe, detector, 3 * n)


def test_a_system_that_does_not_tell_is_trusted(recipe: Recipe, tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    check_memory(recipe, build(recipe), None)


def test_the_tighter_of_machine_and_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert available_bytes(tmp_path) == 500 * 1024

    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("100000\n")
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 500 * 1024

    (group / "memory.max").write_text("400000\n")
    assert available_bytes(tmp_path) == 300_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert available_bytes(tmp_path) == 100_000


def test_a_run_that_cannot_fit_does_not_begin(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "available_bytes", lambda: 1000)

    with pytest.raises(TooLittleMemoryError, match="gradient cache"):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
