from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "detectron2", "timm", "cv2")


def loaded_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["bsgal_train", "bsgal_train.cli", "bsgal_train.recipe"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert loaded_after(f"import {module}") == set()


def test_the_check_can_fail() -> None:
    assert "cv2" in loaded_after("import cv2")
