from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Bytes that must be loaded and stored per fp32 element, from the docstring of the kernel.
FLOORS = {
    "cache_update_dot/update_score": 16,
    "cache_update_dot/update": 12,
    "cache_update_dot/score": 8,
    "cache_update_dot/update_score_metric": 20,
    # Every element reads its row's weight.
    "cache_update_dot/update_score_row_decay": 20,
    # A quarter of a byte for partial sums.
    "sketch": 4.25,
    "cache_update_sketch": 12.25,
    # Products of matrices read their tiles again and again.
    "ghost_dot": None,
    "ghost_sqnorm": None,
}
TARGETS = {"sm_80", "sm_90", "gfx942"}


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "bsgal_score.kernels.resources"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_every_target(resources):
    assert {(row["kernel"], row["target"]) for row in resources} == {
        (kernel, target) for kernel in FLOORS for target in TARGETS
    }


def test_nothing_is_spilled(resources):
    assert {row["spills"] for row in resources} == {0}


def test_contiguous_fp32_is_loaded_128_bits_at_a_time(resources):
    assert {row["load_bits"] for row in resources} == {128}


def test_nothing_is_loaded_or_stored_twice(resources):
    for row in resources:
        assert row["bytes_per_element"] == FLOORS[row["kernel"]], row
