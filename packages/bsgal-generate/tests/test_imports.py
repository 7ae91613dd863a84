from __future__ import annotations

import subprocess
import sys

import pytest

import bsgal_generate

HEAVY = ("torch", "diffusers", "transformers")


def loaded_by(code: str) -> set[str]:
    check = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["bsgal_generate", "bsgal_generate.cli"])
def test_import_is_light(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert "torch" in loaded_by("from bsgal_generate import generate")


def test_every_public_name_exists() -> None:
    assert all(hasattr(bsgal_generate, name) for name in bsgal_generate.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        bsgal_generate.nonsense  # noqa: B018
