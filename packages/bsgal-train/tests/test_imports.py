from __future__ import annotations

import subprocess
import sys

import pytest

import bsgal_train

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


@pytest.mark.parametrize("name", ["Recipe", "load_recipe"])
def test_a_name_that_needs_no_torch_loads_none(name: str) -> None:
    assert loaded_after(f"from bsgal_train import {name}") == set()


@pytest.mark.parametrize("name", bsgal_train.__all__)
def test_the_front_door_has_what_it_lists(name: str) -> None:
    assert getattr(bsgal_train, name) is not None
    assert name in dir(bsgal_train)


def test_another_name_is_no_attribute() -> None:
    assert not hasattr(bsgal_train, "no_such_name")
