"""Peak memory of one case in a process of its own, where nothing is left over from other cases."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def peak_rise_bytes(run: Callable[[], object]) -> int:
    """Return by how much the peak resident size exceeds what is resident before `run`.

    At least one page, so that ratios exist. Linux only.
    """
    gc.collect()  # what an earlier run left behind is not there before this one
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident_bytes("VmRSS")
    run()
    return max(4096, _resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def numbers_of_new_process(script: str, *arguments: str) -> list[int]:
    """Run a script that prints integers; its freed blocks go back to the system at once.

    Otherwise blocks that the allocator keeps would hide what a case takes.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return [int(line) for line in done.stdout.split()]
