from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from bsgal_train import assembly, memory
from bsgal_train.errors import TooLittleMemoryError
from bsgal_train.memory import available_bytes, check_memory
from bsgal_train.recipe import Recipe
from bsgal_train.run import train


class Detector(nn.Module):
    """A million trainable parameters, a quarter of them in the heads, and frozen ones.

    A tenth is the class layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(750, 1000, bias=False)
        predictor = nn.ModuleDict({"cls_score": nn.Linear(100, 1000, bias=False)})
        box_head = nn.Linear(150, 1000, bias=False)
        self.roi_heads = nn.ModuleDict({"box_predictor": predictor, "box_head": box_head})
        self.frozen = nn.Linear(1000, 1000, bias=False).requires_grad_(False)


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        (("selection.mode=paste_all",), 12_000_000),
        (("selection.mode=paper",), 20_000_000),
        (("selection.mode=image",), 14_000_000),
        (("selection.mode=image", "selection.cache_dtype=bf16"), 13_500_000),
        (("selection.mode=instance", "selection.reference=in_batch"), 14_000_000),
        # Of the region heads, the class layer alone.
        (("selection.mode=instance",), 12_400_000),
    ],
)
def test_what_a_run_is_sure_to_need_is_refused_one_byte_below(
    changes: tuple[str, ...], needed: int, recipe: Recipe
) -> None:
    changed = recipe.override(*changes)

    check_memory(changed, Detector(), needed)
    with pytest.raises(TooLittleMemoryError):
        check_memory(changed, Detector(), needed - 1)


def test_the_message_says_what_would_fit(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_GIB", 1_000_000)

    with pytest.raises(
        TooLittleMemoryError,
        match=r"at least 20\.00 GiB .* 12\.00 for gradients and AdamW, 8\.00 for the gradient "
        r"cache of selection\.mode=paper; a process can take 3\.00 GiB\. Alternatives: "
        r"selection\.mode=batch or instance.*paste_all.*a smaller detector\.backbone$",
    ):
        check_memory(recipe, Detector(), 3_000_000)
    with pytest.raises(TooLittleMemoryError, match=r"Alternatives: selection\.cache_dtype=bf16"):
        check_memory(recipe.override("selection.mode=image"), Detector(), 3_000_000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(TooLittleMemoryError, match="fewer --processes on this machine"):
        check_memory(recipe, Detector(), 3_000_000)


def test_a_system_that_does_not_tell_is_trusted(recipe: Recipe, tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    check_memory(recipe, Detector(), None)


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
