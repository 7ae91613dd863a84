from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bsgal_train.cli import main
from bsgal_train.errors import Detectron2SetupError
from bsgal_train.machine import detectron2_setup


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
from bsgal_train.machine.detectron2_setup import ensure_detectron2
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
        "from bsgal_train.machine.detectron2_setup import ensure_detectron2\n"
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
        "from bsgal_train.machine.detectron2_setup import ensure_detectron2\n"
        "ensure_detectron2()"
    )
    assert "run `bsgal-train setup-detectron2`" in done.stderr


def test_a_package_that_detectron2_lacks_is_named(tmp_path: Path):
    make_package(tmp_path, {"__init__.py": "import a_package_that_is_missing"})
    done = run_python(
        "from bsgal_train.machine.detectron2_setup import ensure_detectron2\nensure_detectron2()",
        PYTHONPATH=str(tmp_path),
    )
    assert "pip install a_package_that_is_missing" in done.stderr.splitlines()[-1]


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detectron2_setup.importlib.util.find_spec
    monkeypatch.setattr(
        detectron2_setup.importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "detectron2" else found(name, package),
    )


class FakeRunner:
    """Fail the first command that holds a word; do nothing for the others."""

    def __init__(self, fail_at: str) -> None:
        self.fail_at = fail_at
        self.commands: list[list[str]] = []

    def __call__(self, command, folder, environment):
        self.commands.append(list(command))
        fails = self.fail_at in command
        return subprocess.CompletedProcess(command, int(fails), "", "connection refused")


@pytest.mark.usefixtures("not_installed")
def test_a_failed_download_points_to_the_offline_way():
    runner = FakeRunner("download")
    with pytest.raises(Detectron2SetupError, match="setup-detectron2 --archive FILE") as caught:
        detectron2_setup.install_detectron2(run=runner)
    assert "connection refused" in str(caught.value)
    assert "--require-hashes" in runner.commands[-1]


@pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")
@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize(
    "settings",
    [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}],
)
def test_without_an_index_one_line_says_what_to_fetch_and_where_to_put_it(
    settings: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    assert main(["setup-detectron2"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "fetch pb1-detectron2-0.6.tar.gz (version 0.6 of pb1-detectron2, SHA-256 5d2e9e5" in line
    assert "run `bsgal-train setup-detectron2 --archive FILE`" in line
    assert "No matching distribution found" in line


@pytest.mark.usefixtures("not_installed")
def test_a_source_archive_with_another_hash_is_refused(tmp_path: Path):
    archive = tmp_path / "source.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(Detectron2SetupError, match="SHA-256"):
        detectron2_setup.install_detectron2(archive, run=FakeRunner("nothing"))


@pytest.mark.usefixtures("not_installed")
def test_a_missing_source_archive_is_named(tmp_path: Path):
    with pytest.raises(Detectron2SetupError, match=r"no source archive at .*absent\.tar\.gz"):
        detectron2_setup.install_detectron2(tmp_path / "absent.tar.gz", run=FakeRunner("nothing"))


@pytest.mark.usefixtures("not_installed")
def test_a_failed_build_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = write_archive(tmp_path / "source.tar.gz", {"detectron2-0.6/setup.py": b""})
    monkeypatch.setattr(detectron2_setup, "_check_hash", lambda archive: None)
    message = "building the wheel failed.*setuptools and wheel are current"
    with pytest.raises(Detectron2SetupError, match=message):
        detectron2_setup.install_detectron2(archive, run=FakeRunner("bdist_wheel"))


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "source/../../outside.py"])
def test_unpacking_refuses_members_outside_the_folder(tmp_path: Path, name: str):
    archive = write_archive(tmp_path / "source.tar.gz", {name: b"x"})
    with pytest.raises(Detectron2SetupError, match="do not use this archive"):
        detectron2_setup._unpack(archive, tmp_path / "inner" / "source")
    assert not list(tmp_path.rglob("outside.py"))


def test_unpacking_refuses_links(tmp_path: Path):
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("source/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(Detectron2SetupError, match="not a plain file"):
        detectron2_setup._unpack(archive, tmp_path / "source")


def test_an_installed_detectron2_is_left_alone():
    lines: list[str] = []
    runner = FakeRunner("nothing")
    detectron2_setup.install_detectron2(report=lines.append, run=runner)
    assert runner.commands == []
    assert "left as it is" in lines[0]


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
