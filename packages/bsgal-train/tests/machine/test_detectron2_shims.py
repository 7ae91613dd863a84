from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": "1", "PATH": "", **environment},
    )


PROBE = """
import importlib.util, json, sys
import PIL.Image

def dropped_names():
    return [hasattr(PIL.Image, "LINEAR"), importlib.util.find_spec("pkg_resources") is not None]

before = dropped_names()
from bsgal_train.machine.detectron2_shims import ensure_detectron2
ensure_detectron2()
ensure_detectron2()
after = dropped_names()

import detectron2.checkpoint, detectron2.engine, detectron2.structures, torch
from detectron2 import _C
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

anchors = DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
anchors([torch.zeros(1, 1, 2, 2)])
function = _C.box_iou_rotated
try:
    function(1, 2)
except Exception as error:
    complaint = str(error)
print(json.dumps({
    "before": before,
    "after": after,
    "has_mask_rcnn": "GeneralizedRCNN" in META_ARCH_REGISTRY,
    "is_pure_python": getattr(_C, "__file__", None) is None,
    "complaint": complaint,
}))
"""


@pytest.fixture(scope="module")
def probe() -> dict[str, Any]:
    """Use detectron2 in a fresh process in which every warning is an error."""
    done = run_python(PROBE, "-W", "error")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ensure_makes_a_mask_rcnn_importable_without_any_warning(probe):
    assert probe["has_mask_rcnn"]


def test_ensure_leaves_no_stand_in_behind_for_other_libraries(probe):
    assert probe["before"] == probe["after"]


def test_a_missing_compiled_operator_says_so_when_it_is_called(probe):
    if not probe["is_pure_python"]:
        pytest.skip("this detectron2 has its compiled operators")
    assert "compiled operator 'box_iou_rotated'" in probe["complaint"]


def make_package(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / "detectron2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_build_with_compiled_operators_keeps_them(tmp_path: Path):
    files = dict.fromkeys(
        ("data/__init__.py", "data/transforms.py", "modeling.py", "model_zoo.py"), ""
    )
    make_package(tmp_path, {"__init__.py": "", "_C.py": "origin = 'compiled'", **files})
    done = run_python(
        "from bsgal_train.machine.detectron2_shims import ensure_detectron2\n"
        "ensure_detectron2()\n"
        "from detectron2 import _C\n"
        "print(_C.origin)",
        PYTHONPATH=str(tmp_path),
    )
    assert done.stdout.strip() == "compiled", done.stderr


def test_without_detectron2_the_error_names_the_setup_command(tmp_path: Path):
    # A clone's folder in the search path is not an installation.
    (tmp_path / "detectron2").mkdir()
    done = run_python(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Hide:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'detectron2':\n"
        f"            return PathFinder.find_spec(name, [{str(tmp_path)!r}])\n"
        "sys.meta_path.insert(0, Hide)\n"
        "from bsgal_train.machine.detectron2_shims import ensure_detectron2\n"
        "ensure_detectron2()"
    )
    assert "run `bsgal-train setup-detectron2`" in done.stderr


def test_a_package_that_detectron2_lacks_is_named(tmp_path: Path):
    make_package(tmp_path, {"__init__.py": "import a_package_that_is_missing"})
    done = run_python(
        "from bsgal_train.machine.detectron2_shims import ensure_detectron2\nensure_detectron2()",
        PYTHONPATH=str(tmp_path),
    )
    assert "pip install a_package_that_is_missing" in done.stderr.splitlines()[-1]
