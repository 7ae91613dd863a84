from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("torch", "torchvision", "detectron2")


def loaded_by(statement: str, **environment: str) -> set[str]:
    code = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return set(run.stdout.split())


def test_importing_the_package_and_its_cli_loads_nothing_heavy():
    assert loaded_by("import bsgal_paste, bsgal_paste.cli") == set()


def test_the_check_can_fail(tmp_path):
    (tmp_path / "torch.py").touch()
    assert loaded_by("import torch", PYTHONPATH=str(tmp_path)) == {"torch"}


def test_every_public_name_exists():
    import bsgal_paste

    assert [name for name in bsgal_paste.__all__ if not hasattr(bsgal_paste, name)] == []
