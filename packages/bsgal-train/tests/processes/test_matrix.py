"""Every mode in two processes that have unlike work: none waits for what another does not do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import RandomCrop, TrainingMapper, TrainingSample
from bsgal_train.engine.assembly import assemble
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.judge import Judge, UnitVerdict
from bsgal_train.selection.numbering import Units

InProcesses = Callable[[int, Callable[[int], object]], list[int]]

N_SAMPLES = 4
LEFT = 7
MODES = {
    "none": (),
    "paste_all": (),
    "paste_random": ("selection.granularity=instance",),
    "paper": (),
    "batch": ("selection.refresh_every=2",),
    "image": ("selection.reference=in_batch",),
    "instance": ("selection.images_per_class=1", "selection.alpha=0.4", "selection.min_looks=1"),
    "oracle": (),
}
VARIANTS = {
    "paste_random, by image": ("selection.granularity=image",),
    "paste_random, by batch": ("selection.granularity=batch",),
    "paper, federated reference": ("selection.reference_classes=federated",),
    "image, class-matched": ("selection.reference=class_matched", "selection.refresh_every=2"),
    "image, step": ("selection.form=step", "selection.rowwise=true"),
    "instance, own class": ("selection.reference=own_class", "selection.threshold=0"),
    "instance, in batch": ("selection.reference=in_batch", "selection.rowwise=true"),
    "instance, hybrid": ("selection.reference=hybrid", "selection.form=dot"),
}
CELLS = [
    *itertools.product(MODES, ("mask_rcnn",), (0, 2), (1, 2)),
    *itertools.product(VARIANTS, ("mask_rcnn",), (2,), (2,)),
    *itertools.product(("paper", "batch", "image", "instance"), ("centernet2",), (2,), (2,)),
]


@pytest.fixture(name="samples", scope="module")
def samples_with_pastes(tiny_data: Path) -> list[TrainingSample]:
    annotations = LvisAnnotations.load(tiny_data / "train.json", tiny_data)
    pool = InstancePool.open(tiny_data / "pool").match(annotations.categories)
    sampler = CategoryBalancedSampler(pool, count_range=(1, 3))
    paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.3, 0.4)))
    mapper = TrainingMapper(annotations, RandomCrop(crop_px=64), seed=0, copy_paste=paste)
    found = [mapper(position, position) for position in range(N_SAMPLES)]
    assert all(sample.pastes for sample in found)
    return found


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reject what the second process has, and what both share; the real scores are made first."""
    judge, note = Judge.judge, Judge.note

    def judge_by_rank(
        self: Judge, units: Units, contributions: Sequence[float | None]
    ) -> list[UnitVerdict]:
        is_accepted = processes.rank() == 0 and units.granularity != "batch"
        return judge(self, units, [1.0 if is_accepted else -1.0] * len(units))

    def note_by_rank(self: Judge, units: Units, accepts: Sequence[bool]) -> list[UnitVerdict]:
        is_accepted = processes.rank() == 0 and units.granularity != "batch"
        return note(self, units, [is_accepted] * len(units))

    monkeypatch.setattr(Judge, "judge", judge_by_rank)
    monkeypatch.setattr(Judge, "note", note_by_rank)


def without_pastes(sample: TrainingSample) -> TrainingSample:
    return replace(sample, pasted=sample.original, pastes=())


def without_objects(sample: TrainingSample) -> TrainingSample:
    bare = sample.original.only(slice(0))
    return replace(sample, original=bare, pasted=bare, pastes=())


def raise_error(*_: Any) -> None:
    raise OSError("the disk is gone")


@pytest.mark.usefixtures("verdicts")
@pytest.mark.parametrize(
    ("mode", "architecture", "n_federated", "n_accumulate"),
    CELLS,
    ids=lambda value: str(value).replace(", ", "-").replace(" ", "-"),
)
def test_no_process_waits_for_ever(
    mode: str,
    architecture: str,
    n_federated: int,
    n_accumulate: int,
    in_processes: InProcesses,
    samples: list[TrainingSample],
    tiny_recipe: Recipe,
) -> None:
    recipe = tiny_recipe.override(
        f"selection.mode={mode.partition(',')[0]}",
        f"detector.architecture={architecture}",
        f"detector.federated_classes={n_federated}",
        f"schedule.batch_size={N_SAMPLES}",
        f"schedule.n_accumulate={n_accumulate}",
        *(MODES | VARIANTS)[mode],
    )

    def work(rank: int) -> None:
        annotations = LvisAnnotations.load(recipe.data.train_json, recipe.data.image_root)
        if mode == "oracle":
            with pytest.raises(ValueError, match="mode=oracle runs in one process only"):
                assemble(recipe, annotations)
            os._exit(LEFT * rank)
        assembly = assemble(recipe, annotations)
        own = [samples[i] for i in processes.share(N_SAMPLES)]
        plain = [without_pastes(sample) for sample in own]
        empty = [without_objects(sample) for sample in own]
        # What the two have: the second rejects; then one and the other lacks pastes or objects.
        for given in ((own, own), (own, plain), (plain, own), (own, empty), (empty, plain)):
            assembly.steps.take(given[rank])
            assert_same_everywhere(assembly.detector)
        if rank == 1:
            assembly.detector.get_submodule("roi_heads").register_forward_pre_hook(raise_error)
            with pytest.raises(OSError, match="the disk is gone"):
                assembly.steps.take(own)
            # As a process that fails leaves: without a word to the others.
            os._exit(LEFT)
        with pytest.raises(RuntimeError, match=r"(?i)connection|lost the other processes"):
            assembly.steps.take(own)

    assert in_processes(2, work) == [0, LEFT]


def assert_same_everywhere(detector: torch.nn.Module) -> None:
    values = [float(parameter.detach().double().sum()) for parameter in detector.parameters()]
    assert processes.gather(values) == [values] * processes.n_processes()
