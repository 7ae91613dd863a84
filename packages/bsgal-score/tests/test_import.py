from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK_TRITON = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Blocker())
"""
LIGHT = """
import sys, bsgal_score
for name in ("triton", "torchvision", "transformers", "pyarrow"):
    assert name not in sys.modules, f"{name} was imported"
"""
USE = """
import torch, bsgal_score
model = torch.nn.Linear(3, 2)
cache = bsgal_score.GradientCache(model.named_parameters(), decay=0.1)
gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
assert cache.update_and_score(gradients, gradients) > 0.999
try:
    bsgal_score.ops.cache_update_dot([torch.ones(1)], None, None, impl="triton")
except bsgal_score.errors.ImplementationUnavailableError:
    pass
else:
    raise AssertionError("triton ran")
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_imports_nothing_optional():
    done = run(LIGHT)
    assert done.returncode == 0, done.stderr


def test_the_import_check_can_fail():
    pytest.importorskip("triton")
    done = run("import triton\n" + LIGHT)
    assert "triton was imported" in done.stderr


def test_works_where_triton_is_not_installed():
    done = run(BLOCK_TRITON + USE)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks():
    assert "No module named 'triton'" in run(BLOCK_TRITON + "import triton").stderr
