"""Looks at a pool, as a screening takes them: complete, and the same whoever takes them."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.engine.assembly import assemble
from bsgal_train.engine.looking import Looking
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.selection.scoring.looks import Looks

N_LOOKS = 6


def looking(recipe: Recipe) -> Looking:
    data = recipe.data
    annotations = LvisAnnotations.load(Path(data.train_json), Path(data.image_root))
    # Without moving weights, the batch of a run does not matter.
    chosen = recipe.override("selection.mode=paste_all", "schedule.batch_size=12")
    return Looking(chosen, assemble(chosen, annotations), N_LOOKS)


def all_looks(recipe: Recipe, first_batch: int = 0) -> list[Looks]:
    return [one for found in looking(recipe).rounds(first_batch) for one in found]


def same(a: Sequence[Looks], b: Sequence[Looks]) -> bool:
    return len(a) == len(b) and all(
        one.ids == other.ids
        and np.array_equal(one.features, other.features, equal_nan=True)
        and all(
            np.array_equal(one.losses[name], other.losses[name], equal_nan=True)
            for name in one.losses
        )
        for one, other in zip(a, b, strict=True)
    )


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.override("detector.federated_classes=2")


def test_every_instance_is_looked_at_and_so_are_real_objects(recipe: Recipe) -> None:
    found = looking(recipe)
    looks = [one for of_round in found.rounds() for one in of_round]

    assert len(looks) == found.n_batches
    assert found.n_images_in(found.n_batches) == found.n_images
    pasted = Counter(
        name for one in looks for name, is_real in zip(one.ids, one.is_real, strict=True)
        if not is_real
    )  # fmt: skip
    assert set(pasted) == {"103-0", "103-1", "105-0", "105-1"}
    # Some may be hidden or outside; none is pasted more often than asked for.
    assert max(pasted.values()) <= N_LOOKS
    assert sum(pasted.values()) > 4 * N_LOOKS / 2
    assert len({name for one in looks for name in np.array(one.ids)[one.is_real]}) > 3
    # At first there are real objects only.
    assert looks[0].is_real.all()


def test_looks_are_the_same_with_loader_processes_and_where_one_goes_on(recipe: Recipe) -> None:
    whole = all_looks(recipe)

    assert same(all_looks(recipe.override("data.n_workers=2")), whole)
    assert same(all_looks(recipe, first_batch=3), whole[3:])


def test_looks_leave_the_detector_as_it_was(recipe: Recipe) -> None:
    found = looking(recipe)
    detector = found._assembly.detector
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    list(found.rounds(found.n_batches - 1))

    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize("n", [2, 3])
def test_looks_are_the_same_in_several_processes(
    recipe: Recipe,
    in_processes: Callable[[int, Callable[[int], object]], list[int]],
    tmp_path: Path,
    n: int,
) -> None:
    whole = all_looks(recipe)

    def work(rank: int) -> None:
        assert processes.n_processes() == n
        (tmp_path / f"{rank}").write_bytes(pickle.dumps(all_looks(recipe)))

    assert in_processes(n, work) == [0] * n
    for rank in range(n):
        assert same(pickle.loads((tmp_path / f"{rank}").read_bytes()), whole)
