from __future__ import annotations

import os
from itertools import islice
from typing import Any

import pytest

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data.real_crops import RealCrops
from bsgal_train.engine.assembly import assemble
from bsgal_train.recipe import Recipe

MODES = {
    "paper": (),
    "batch": ("selection.refresh_every=2",),
    "oracle": (),
    "instance": ("selection.images_per_class=2",),
    "instance, class-matched": ("selection.reference=class_matched", "selection.refresh_every=2"),
    "image, hybrid": ("selection.reference=hybrid", "selection.refresh_every=3"),
}


class ReadHereError(Exception):
    """The training process has read an image."""


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = RealCrops.draw
    training_process = os.getpid()

    def refuse(self: Any, *arguments: Any) -> Any:
        if os.getpid() == training_process:
            raise ReadHereError
        return draw(self, *arguments)

    monkeypatch.setattr(RealCrops, "draw", refuse)


def take_steps(recipe: Recipe, mode: str, n_workers: int) -> None:
    recipe = recipe.override(
        f"selection.mode={mode.partition(',')[0]}", f"data.n_workers={n_workers}", *MODES[mode]
    )
    annotations = LvisAnnotations.load(recipe.data.train_json, recipe.data.image_root)
    assembly = assemble(recipe, annotations)
    for samples in islice(assembly.batches(0), 4):
        assembly.steps.take(samples)
    assert assembly.steps.n_done == 4


# Python 3.12 warns when loader processes are forked beside PyTorch's threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("mode", MODES)
def test_only_loader_processes_read_images(mode: str, tiny_recipe: Recipe) -> None:
    take_steps(tiny_recipe, mode, n_workers=1)


@pytest.mark.usefixtures("no_reading")
def test_the_check_can_fail(tiny_recipe: Recipe) -> None:
    with pytest.raises(ReadHereError):
        take_steps(tiny_recipe, "paper", n_workers=0)
