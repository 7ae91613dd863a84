from __future__ import annotations

import doctest
import io
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bsgal_score import EvidenceBook, Prototypes, Source, _prototypes
from bsgal_score.errors import OtherProcessError, StateMismatchError

WIDTH = 8


def objects_of(seed, n=20):
    """Return ids, classes and features of real objects; an id has always the same class."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(40, n, replace=False)
    features = torch.from_numpy(rng.normal(size=(n, WIDTH)).astype(np.float32))
    return [f"object {i}" for i in numbers], numbers % 3, features


def saved(prototypes):
    file = io.BytesIO()
    torch.save(prototypes.state_dict(), file)
    return file.getvalue()


def cosine(one, other):
    return float(one @ other / one.norm() / other.norm())


def expected_missing(n, r):
    return math.sqrt(r) * (1 - math.sqrt(n * r / (1 + (n - 1) * r)))


def test_a_unit_is_compared_with_the_other_objects_of_its_class_both_centred():
    torch.manual_seed(0)
    features = torch.randn(6, WIDTH) + torch.tensor([1.0] + [0.0] * (WIDTH - 1))
    features[:3, 1] += 3
    features[3:5, 2] += 3
    classes, ids = [0, 0, 0, 1, 1, 2], [f"object {i}" for i in range(6)]
    prototypes = Prototypes(4, WIDTH)
    prototypes.update(ids, classes, features)
    centre = torch.stack([features[:3].mean(0), features[3:5].mean(0), features[5]]).mean(0)
    directions = torch.nn.functional.normalize(features - centre, dim=1)
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    r = sum(float(directions[i] @ directions[j]) for i, j in pairs) / 4
    assert prototypes.correlation() == pytest.approx(r, rel=1e-5)
    new = torch.randn(WIDTH)
    found = prototypes.compare(
        ["new", "new", "object 0", "object 5", "object 0"], [0, 3, 0, 2, 0],
        torch.stack([new, new, features[0], features[5], features[0]]),
        [False, False, True, True, False],
    )  # fmt: skip
    assert float(found[0]) == pytest.approx(
        cosine(new - centre, directions[:3].sum(0)) + expected_missing(3, r), abs=1e-5
    )
    # Real objects meet the others of their class; a class without (others) says nothing.
    assert float(found[2]) == pytest.approx(
        cosine(features[0] - centre, directions[1] + directions[2]) + expected_missing(2, r),
        abs=1e-5,
    )
    assert found.isnan().tolist() == [False, True, False, True, False]
    # A generated unit with the id and the looks of a real one meets all three.
    assert found[4] > found[2]


def test_the_newest_feature_of_each_of_the_newest_objects_is_kept():
    prototypes = Prototypes(1, 2, window=2)
    for number, name in enumerate(["a", "b", "a", "c"]):
        prototypes.update([name], [0], torch.tensor([[float(number), 1.0]]))
    state = prototypes.state_dict()
    assert sorted(state["features"][0].tolist()) == [[2.0, 1.0], [3.0, 1.0]]
    # More at once than there is room for.
    prototypes.update(list("defgh"), [0] * 5, torch.arange(10.0).reshape(5, 2))
    assert prototypes.state_dict()["features"].shape == (1, 2, 2)


def test_good_units_of_classes_with_one_object_are_not_rejected_more_often():
    def run(seed, corrected):
        rng = np.random.default_rng(seed)
        n_objects = np.repeat([1, 2, 3, 6, 25], [100, 60, 60, 20, 10])
        n = len(n_objects)
        groups = np.where(n_objects <= 3, "r", np.where(n_objects < 10, "c", "f"))
        classes = np.concatenate([np.repeat(np.arange(n), n_objects), np.repeat(range(n), 3)])
        is_real = np.arange(len(classes)) < n_objects.sum()
        features = rng.normal(size=(n, 128))[classes] + 2 * rng.normal(size=(len(classes), 128))
        features = torch.from_numpy(features).float()
        ids = np.array([f"unit {i}" for i in range(len(classes))])
        prototypes = Prototypes(n, 128)
        real = np.flatnonzero(is_real)
        prototypes.update(ids[real].tolist(), classes[real], features[real])
        values = prototypes.compare(ids.tolist(), classes, features, is_real)
        if not corrected:
            others = torch.from_numpy(np.minimum(n_objects, 16)[classes] - is_real)
            values -= prototypes._missing(others)
        book = EvidenceBook([Source("prototype", "low", shrinkage=100.0)], groups.tolist())
        book.look(ids.tolist(), classes, {"prototype": values}, is_real)
        verdicts = book.table(ids[~is_real].tolist(), alpha=0.05, min_looks=1).verdicts
        return [(verdicts[n_objects[classes[~is_real]] == m] == "reject").mean() for m in (1, 2, 3)]

    corrected, plain = (np.array([run(seed, one) for seed in range(12)]) for one in (True, False))
    # A run's good units share prototypes and reference, so its share is one number: mean and error
    # over the runs.
    errors = corrected.std(axis=0, ddof=1) / math.sqrt(12)
    assert (corrected.mean(axis=0) <= 0.05 + 2.576 * errors).all(), corrected.mean(axis=0)
    assert errors.max() < 0.012
    assert plain.mean(axis=0)[0] > 0.07


def test_the_order_of_the_objects_of_a_step_does_not_matter():
    one, other = Prototypes(3, WIDTH, window=4), Prototypes(3, WIDTH, window=4)
    for step in range(4):
        ids, classes, features = objects_of(step)
        # One of them comes twice.
        ids, classes = [*ids, ids[0]], np.append(classes, classes[0])
        features = torch.cat([features, features[:1] + 1])
        order = np.random.default_rng(step).permutation(21)
        one.update(ids, classes, features)
        other.update([ids[i] for i in order], classes[order], features[order])
        assert saved(one) == saved(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resumed_prototypes_go_on_bit_for_bit_in_bounded_memory(dtype):
    whole, resumed = (Prototypes(3, WIDTH, window=4, dtype=dtype) for _ in range(2))
    for step in range(3):
        whole.update(*objects_of(step))
    state = torch.load(io.BytesIO(saved(whole)), weights_only=True)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        for prototypes in (whole, resumed):
            prototypes.update(*objects_of(step))
    assert saved(whole) == saved(resumed)
    assert whole.state_dict()["features"].nbytes == 3 * 4 * WIDTH * dtype.itemsize
    look = (*objects_of(9), [False] * 20)
    assert torch.equal(whole.compare(*look), resumed.compare(*look))
    with pytest.raises(StateMismatchError, match="window 4, this object has 5"):
        Prototypes(3, WIDTH, window=5, dtype=dtype).load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"has no \['sums'\]"):
        whole.load_state_dict({name: part for name, part in state.items() if name != "sums"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [3]}, r"`classes` must lie in \[0, 3\), got 3 for 'a'"),
        ({"classes": [0, 1]}, "`ids` has 1 units, classes has 2"),
        ({"features": torch.zeros(1, 3)}, r"must have the shape \(1, 8\)"),
        ({"features": torch.full((1, WIDTH), torch.nan)}, "must be finite, got NaN or Inf for 'a'"),
    ],
)
def test_objects_that_cannot_be_are_refused_and_change_nothing(change, message):
    prototypes = Prototypes(3, WIDTH)
    prototypes.update(*objects_of(0))
    before = saved(prototypes)
    look = {"ids": ["a"], "classes": [0], "features": torch.ones(1, WIDTH), **change}
    with pytest.raises(ValueError, match=message):
        prototypes.update(**look)
    with pytest.raises(ValueError, match=message):
        prototypes.compare(**look, is_real=[False])
    assert saved(prototypes) == before


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`window` must be at least 1, got 0"):
        Prototypes(3, WIDTH, window=0)
    with pytest.raises(ValueError, match=r"must be torch.float32 or torch.float16, got torch.int8"):
        Prototypes(3, WIDTH, dtype=torch.int8)


def test_no_objects_are_no_evidence():
    prototypes = Prototypes(3, WIDTH)
    prototypes.update([], [], torch.zeros(0, WIDTH))
    assert math.isnan(prototypes.correlation())
    assert prototypes.compare([], [], torch.zeros(0, WIDTH), []).tolist() == []
    assert prototypes.compare(["a"], [0], torch.ones(1, WIDTH), [False]).isnan().all()


def test_docstring_examples_run():
    result = doctest.testmod(_prototypes)
    assert result.attempted > 0
    assert result.failed == 0


def work(folder, process):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    prototypes = Prototypes(3, WIDTH, window=4)
    for step in range(4):
        ids, classes, features = objects_of(step)
        # Of different numbers of objects; process 1 has none in step 2.
        mine = (
            slice(0, 20 if step == 2 else 13)
            if process == 0
            else slice(20 if step == 2 else 13, 20)
        )
        prototypes.update(ids[mine], classes[mine], features[mine], group=dist.group.WORLD)
    before = saved(prototypes)
    features = torch.full((1, WIDTH), 1.0 if process == 0 else math.inf)
    try:
        prototypes.update(["a"], [0], features, group=dist.group.WORLD)
        raised = None
    except (OtherProcessError, ValueError) as error:
        raised = type(error).__name__
    result = {"state": before, "same": saved(prototypes) == before, "raised": raised}
    torch.save(result, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_processes_equal_one_with_all_objects():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        running = [
            subprocess.Popen([*command, str(process)], stderr=subprocess.PIPE, text=True)
            for process in range(2)
        ]
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        results = [torch.load(Path(folder) / f"{process}.pt") for process in range(2)]
    prototypes = Prototypes(3, WIDTH, window=4)
    for step in range(4):
        prototypes.update(*objects_of(step))
    for result, raised in zip(results, ["OtherProcessError", "ValueError"], strict=True):
        assert result["state"] == saved(prototypes)
        assert result["same"]
        assert result["raised"] == raised


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
