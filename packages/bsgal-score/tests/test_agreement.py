"""Where one process raises before an exchange, all of them raise, and none waits for it."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bsgal_score import (
    ClassRowScorer,
    GhostScorer,
    GradientCache,
    StepModel,
    joint_sketched_contribution,
)

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


def gradients(model, value=1.0):
    return {name: torch.full_like(p, value) for name, p in model.named_parameters()}


def update(model, given, rows=None, **options):
    """Update a fresh cache jointly; return a number that says what it holds."""
    cache = GradientCache(model.named_parameters(), decay=0.5, **options)
    before = cache.state_dict()["tensors"]["weight"].clone()
    try:
        cache.update(given, rows, group=dist.group.WORLD)
    except Exception:
        assert torch.equal(cache["weight"], before), "the cache was changed"
        assert cache.n_updates == 0
        raise
    return float(cache["weight"][0, 0])


def class_rows(index, classes, value=1.0):
    torch.manual_seed(0)
    classifier = nn.Linear(3, 5)
    scorer = ClassRowScorer(classifier)
    with scorer:
        loss = classifier(torch.full((4, 3), value)).square().sum()
        scorer.score(loss, index, classes, torch.tensor([True, True]), group=dist.group.WORLD)
    return float(scorer.rows.norm())


def units(*, index=(-1, -1, 0, 0), value=1.0, transposed=False, curvature=False):
    """Score units against a shared cache; return its norm."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3, bias=False)
    cache = GradientCache(model.named_parameters(), decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = StepModel(optimizer, curvature="diagonal") if curvature else None
    rows = torch.full((4, 3), value)
    with GhostScorer(model, cache) as scorer:
        outputs = rows @ model.weight if transposed else model(rows)
        try:
            scorer.score(
                outputs.square().sum(), torch.tensor(index), step=step, group=dist.group.WORLD
            )
        except Exception:
            assert cache.n_updates == 0
            assert step is None or step.curvature.n_updates == 0
            raise
    return cache.norm()


def good_index():
    return torch.tensor([0, 0, 1, 1])


def good_classes():
    return torch.tensor([2, 3])


def cases(rank):
    """Name to call; process 1 does something wrong, or has nothing."""
    model = nn.Linear(3, 2)
    good, first = gradients(model), rank == 0
    bad_shape = good | {"weight": torch.zeros(3, 2)}
    nonfinite = good | {"bias": torch.tensor([math.nan, 1.0])}

    def cached(given, rows=None, **options):
        return lambda: update(model, good if first else given, rows, **options)

    return {
        "nonfinite": cached(nonfinite),
        "wrong shape": cached(bad_shape),
        "wrong shape, unchecked": cached(bad_shape, check_finite=False),
        "wrong shape, row-wise": cached(bad_shape, rowwise=["*"]),
        "nonfinite, row-wise": cached(nonfinite, rowwise=["*"]),
        "unknown name": cached(good | {"other": torch.zeros(1)}),
        "no tensor": cached(good | {"weight": [1.0]}),
        "no mapping": cached(None),
        "row out of range": cached(good, [0] if first else [7], rowwise=["*"]),
        "missing": cached({}),
        "missing, row-wise": cached({}, [0] if first else [], rowwise=["weight"]),
        "sketches": lambda: joint_sketched_contribution(
            torch.ones(32), torch.ones(32 if first else 64)
        ),
        "class rows, short index": lambda: class_rows(
            good_index()[: 4 if first else 3], good_classes()
        ),
        "class rows, bad class": lambda: class_rows(
            good_index(), good_classes() + (0 if first else 9)
        ),
        "class rows, nonfinite": lambda: class_rows(
            good_index(), good_classes(), 1.0 if first else math.inf
        ),
        "units, not recorded": lambda: units(transposed=not first),
        "units, nonfinite": lambda: units(value=1.0 if first else math.inf),
        # Finite gradients, whose squares are not.
        "units, curvature": lambda: units(value=1.0 if first else 1e15, curvature=True),
        "units, short index": lambda: units(index=(-1, -1, 0, 0)[: 4 if first else 3]),
        "units, no reference": lambda: units(index=(-1, -1, 0, 0) if first else (0, 0, 0, 0)),
        "all is well": cached(good),
    }


def work(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    found = {}
    for name, call in cases(rank).items():
        try:
            found[name] = call()
        except (ValueError, TypeError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        running = [
            subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        yield [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


ERRORS = {
    "nonfinite": ("NonFiniteGradientError", "'bias' holds 1 NaN"),
    "nonfinite, row-wise": ("NonFiniteGradientError", "'bias' holds 1 NaN"),
    "wrong shape": ("GradientMismatchError", "must have shape (2, 3)"),
    "wrong shape, unchecked": ("GradientMismatchError", "must have shape (2, 3)"),
    "wrong shape, row-wise": ("GradientMismatchError", "must have shape (2, 3)"),
    "unknown name": ("GradientMismatchError", "'other' belongs to no parameter"),
    "class rows, nonfinite": ("NonFiniteGradientError", "classes [2, 3]"),
    "units, not recorded": ("UnsupportedLayerError", "'weight' cannot be scored"),
    "units, nonfinite": ("NonFiniteGradientError", "'weight' holds 9 NaN"),
    "units, curvature": ("NonFiniteGradientError", "a curvature with NaN or Inf"),
}
# What is no error of this package's own is another one elsewhere.
OTHER_ERRORS = {
    "no tensor": "TypeError: the gradient of 'weight' must be a tensor",
    "no mapping": "TypeError",
    "row out of range": "ValueError: `rows` must lie in [0, 2)",
    "sketches": "ValueError: `candidate_sketch` must have the shape (32,)",
    "class rows, short index": "ValueError: `unit_index` must be int64",
    "class rows, bad class": "ValueError: `unit_classes` must lie in [0, 5)",
    "units, short index": "ValueError: `unit_index` must be int64",
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_one_process_is_raised_in_all_by_its_kind(found, case):
    kind, message = ERRORS[case]
    assert [one[case].partition(":")[0] for one in found] == [kind, kind]
    assert message in found[1][case]


@pytest.mark.parametrize("case", OTHER_ERRORS)
def test_any_other_error_is_announced_to_the_others(found, case):
    assert found[1][case].startswith(OTHER_ERRORS[case])
    assert found[0][case].startswith("OtherProcessError: another process of the group raised")


def test_a_process_without_gradients_counts_as_zeros(found):
    assert [one["missing"] for one in found] == [0.25, 0.25]
    assert [one["missing, row-wise"] for one in found] == [0.25, 0.25]


def test_a_process_without_reference_rows_shares_the_cache(found):
    norms = [one["units, no reference"] for one in found]
    assert norms[0] == norms[1] > 0


def test_the_processes_go_on_together_after_all_these_errors(found):
    missing = {"missing", "missing, row-wise", "units, no reference"}
    assert {*ERRORS, *OTHER_ERRORS, *missing} == {*found[0]} - {"all is well"}
    assert [one["all is well"] for one in found] == [0.5, 0.5]


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
