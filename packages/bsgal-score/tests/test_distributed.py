from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bsgal_score import (
    CountSketch,
    GhostScorer,
    GradientCache,
    joint_contribution,
    joint_sketched_contribution,
)
from bsgal_score.errors import NonFiniteGradientError

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)

N_STEPS = 3
# Process 1 has no reference rows in its second step.
INDICES = [
    [[0, 1, 1, -1, -1, 0], [-1, 0, 1, 1, -1, -2]],
    [[0, -1, 1, -1, -1, 0], [0, 0, 1, 1, -2, -2]],
    [[0, 1, 1, -1, 0, 0], [-1, 0, 1, -1, -1, -1]],
]


def score(processes, step, scorer, model, **options):
    """Score the rows of some processes in one forward pass; their units follow one another."""
    rows = torch.cat([_rows(step, process) for process in processes])
    index = torch.cat(
        [
            torch.tensor([u + 2 * i if u >= 0 else u for u in INDICES[step][process]])
            for i, process in enumerate(processes)
        ]
    )
    with scorer:
        loss = model(rows).square().sum() / len(rows)
        return scorer.score(loss, index, n_units=2 * len(processes), **options)


def _rows(step, process):
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(10 * step + process)).double()


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    cache = GradientCache(model.named_parameters(), decay=0.7)
    return model, cache, GhostScorer(model, cache)


ROWS = [[0, 2], [2, 3]]


def make_rowwise():
    torch.manual_seed(1)
    model = nn.Linear(5, 4).double()
    return model, GradientCache(model.named_parameters(), decay=0.7, rowwise=["*"])


def gradients_of(process, step, model):
    generator = torch.Generator().manual_seed(100 + 10 * step + process)
    return {
        name: torch.randn(p.shape, generator=generator).double()
        for name, p in model.named_parameters()
    }


def work_on_rows_and_sketches(group, process):
    """Return what one process finds with a row-wise cache and with sketches, and the bytes."""
    n_bytes = []
    reduce = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        n_bytes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *args, **kwargs)

    model, cache = make_rowwise()
    _, plain, _ = make()
    dist.all_reduce = counting
    try:
        for step in range(N_STEPS):
            cache.update(gradients_of(process, step, model), ROWS[process], group=group)
        row_bytes = sum(n_bytes) / N_STEPS
        n_bytes.clear()
        plain.update({}, group=group)
        plain_bytes = sum(n_bytes)
        bad = gradients_of(process, 0, model)
        bad["bias"][process] = math.nan if process else 0.0
        try:
            cache.update(bad, ROWS[process], group=group)
            raised = None
        except NonFiniteGradientError as error:
            raised = str(error)
        own = GradientCache(model.named_parameters(), decay=0.7)
        sketcher = CountSketch(model.named_parameters(), width=32, seed=0)
        cache_sketch = own.update_and_sketch(gradients_of(process, 0, model), sketcher)
        candidate = sketcher.sketch(gradients_of(process, 1, model))
        n_bytes.clear()
        joint = {
            form: joint_sketched_contribution(cache_sketch, candidate, form)
            for form in ("cosine", "dot")
        }
        sketch_bytes = sum(n_bytes) / 2
        joint["one has none"] = joint_sketched_contribution(
            cache_sketch, candidate if process else None, "dot"
        )
        joint["no evidence"] = joint_sketched_contribution(cache_sketch, None)
        joint["nan"] = joint_sketched_contribution(cache_sketch, candidate * math.nan)
        return {
            "rowwise": {name: cache[name] for name in cache.names},
            "bytes": {
                "rowwise": (row_bytes, cache.exchanged_bytes),
                "plain": (plain_bytes, plain.exchanged_bytes),
                "sketch": (sketch_bytes, 8 * sketcher.width + 8),
            },
            "raised": raised,
            "sketched": joint,
        }
    finally:
        dist.all_reduce = reduce


def work(folder, process):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    model, cache, scorer = make()
    group = dist.group.WORLD
    scores = [score([process], step, scorer, model, group=group) for step in range(N_STEPS)]
    result = {
        "cosine": torch.stack([s.cosine for s in scores]),
        "dot": torch.stack([s.dot for s in scores]),
        "cache": {name: cache[name] for name in cache.names},
        "joint": [
            joint_contribution(mine[process])
            for mine in ([1.0, 3.0], [None, 3.0], [None, None], [math.nan, 1.0])
        ],
        "more": work_on_rows_and_sketches(group, process),
    }
    torch.save(result, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results():
    # Processes of their own: this file is run as a program, see its end.
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        running = [
            subprocess.Popen([*command, str(process)], stderr=subprocess.PIPE, text=True)
            for process in range(2)
        ]
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        yield [torch.load(Path(folder) / f"{process}.pt") for process in range(2)]


def test_two_processes_equal_one_with_twice_the_rows(results):
    model, cache, scorer = make()
    for step in range(N_STEPS):
        scores = score([0, 1], step, scorer, model)
        both = torch.cat([result["cosine"][step] for result in results])
        torch.testing.assert_close(both, scores.cosine, rtol=1e-9, atol=1e-12)
        # A process divides its loss by its own rows, half as many.
        both = torch.cat([result["dot"][step] for result in results])
        torch.testing.assert_close(both, 2 * scores.dot, rtol=1e-9, atol=1e-12)
    for result in results:
        for name in cache.names:
            torch.testing.assert_close(result["cache"][name], cache[name], rtol=1e-9, atol=1e-12)


def test_all_processes_get_the_same_joint_contribution(results):
    for result in results:
        assert result["joint"][:3] == [2.0, 3.0, None]
        assert math.isnan(result["joint"][3])


def mean_of_both(step, model):
    first, second = (gradients_of(process, step, model) for process in range(2))
    return {name: (first[name] + second[name]) / 2 for name in first}


def test_row_wise_caches_are_those_of_the_united_classes(results):
    model, cache = make_rowwise()
    for step in range(N_STEPS):
        cache.update(mean_of_both(step, model), [0, 2, 3])
    assert not cache["weight"][1].any()
    for result in results:
        found = result["more"]["rowwise"]
        for name in cache.names:
            torch.testing.assert_close(found[name], cache[name], rtol=1e-12, atol=1e-12)


def test_the_bytes_that_cross_the_network_are_those_stated(results):
    for result in results:
        for what, (counted, stated) in result["more"]["bytes"].items():
            assert counted == stated, what


def test_a_nonfinite_gradient_in_one_process_raises_in_all(results):
    assert "another process holds NaN" in results[0]["more"]["raised"]
    assert "'bias' holds 1 NaN" in results[1]["more"]["raised"]


def test_sketched_contributions_hold_the_products_between_processes(results):
    model, _ = make_rowwise()
    sketcher = CountSketch(model.named_parameters(), width=32, seed=0)
    c = sketcher.sketch(mean_of_both(0, model)).double() * (1 - 0.7)
    k = sketcher.sketch(mean_of_both(1, model)).double()
    half = sketcher.sketch(gradients_of(1, 1, model)).double() / 2
    # Sketches are rounded to float32.
    dots = {"dot": float(c @ k), "one has none": float(c @ half)}
    for result in results:
        found = result["more"]["sketched"]
        for key, dot in dots.items():
            assert found[key] == pytest.approx(dot, abs=1e-6 * float(c.norm() * k.norm()))
        assert found["cosine"] == pytest.approx(float(c @ k / c.norm() / k.norm()), abs=1e-6)
        assert found["no evidence"] is None
        assert math.isnan(found["nan"])


def test_misuse_of_joint_sketches_is_explained():
    with pytest.raises(ValueError, match=r"must have the shape \(32,\)"):
        joint_sketched_contribution(torch.zeros(32), torch.zeros(64))
    with pytest.raises(ValueError, match="`form` must be"):
        joint_sketched_contribution(torch.zeros(32), None, "step")
    with pytest.raises(RuntimeError, match="init_process_group"):
        joint_sketched_contribution(torch.zeros(32), None)


def test_row_wise_caches_are_not_averaged():
    cache = GradientCache(nn.Linear(2, 2).named_parameters(), decay=0.1, rowwise=["weight"])
    with pytest.raises(ValueError, match="cannot be averaged"):
        cache.all_reduce(None)


def test_a_joint_contribution_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        joint_contribution(1.0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
