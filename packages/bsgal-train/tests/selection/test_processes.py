"""Two processes judge and learn as one with all of their samples does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("one_process.py")


def run(data: Path, out: Path, n_processes: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    common = [sys.executable, str(PROGRAM), str(data)]
    last = [str(n_processes), str(out), json.dumps(settings)]
    started = [
        subprocess.Popen([*common, str(rank), *last], stderr=subprocess.PIPE, text=True)
        for rank in range(n_processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [
        torch.load(out / f"{rank}-of-{n_processes}.pt", weights_only=True)
        for rank in range(n_processes)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "instance", "reference": "hybrid", "refresh_every": 2, "policy": "quantile"},
        {"mode": "instance", "form": "step", "rowwise": True},
        {"mode": "image", "form": "dot", "policy": "quantile"},
        {"mode": "batch", "refresh_every": 2, "layers": "heads"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_two_processes_equal_one_with_the_double_batch(
    settings: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    (one,) = run(tiny_data, tmp_path, 1, settings)
    both = run(tiny_data, tmp_path, 2, settings)

    found = sorted(both[0]["decisions"] + both[1]["decisions"], key=lambda row: row[:2])
    expected = sorted(one["decisions"], key=lambda row: row[:2])
    assert [row[:3] + row[4:5] for row in found] == [row[:3] + row[4:5] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        if wanted[3] is None:
            assert row[3] is None
        else:
            assert row[3] == pytest.approx(wanted[3], rel=2e-2, abs=1e-4)
        assert row[5] == pytest.approx(wanted[5], rel=2e-2, abs=1e-4)
    for name, weight in one["weights"].items():
        assert torch.equal(both[0]["weights"][name], both[1]["weights"][name])
        torch.testing.assert_close(both[0]["weights"][name], weight, rtol=1e-2, atol=1e-3)
