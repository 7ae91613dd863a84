"""Draws with the stub pipeline in workers that load this file; run as a script it is one run.

Usage: python stub_script.py SET_FOLDER N_WORKERS
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

from bsgal_generate import Category, DeviceWorkers, GenerationPlan, ImagePipeline, generate

PLAN = GenerationPlan(
    categories=tuple(Category(i, f"thing_{i}") for i in range(1, 21)), images_per_category=10
)
BATCH_SIZE = 8


def fault(prompt: str, seed: int) -> str | None:
    time.sleep(0.002)
    return "blank" if seed % 4 == 0 else None


def load(*, device: str) -> ImagePipeline:
    stub_class = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["StubPipeline"]
    return ImagePipeline(stub_class(fault=fault, device=device), "stub")


def main() -> None:
    out_dir, n_workers = sys.argv[1], int(sys.argv[2])
    if n_workers == 1:
        generate(PLAN, load(device="cpu"), out_dir, batch_size=BATCH_SIZE)
    else:
        generate(PLAN, DeviceWorkers(load, ["cpu"] * n_workers), out_dir, batch_size=BATCH_SIZE)


if __name__ == "__main__":
    main()
