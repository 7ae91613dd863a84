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

from bsgal_score import GhostScorer, GradientCache, joint_contribution

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

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


def test_row_wise_caches_are_not_averaged():
    cache = GradientCache(nn.Linear(2, 2).named_parameters(), decay=0.1, rowwise=["weight"])
    with pytest.raises(ValueError, match="cannot be averaged"):
        cache.all_reduce(None)


def test_a_joint_contribution_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        joint_contribution(1.0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
