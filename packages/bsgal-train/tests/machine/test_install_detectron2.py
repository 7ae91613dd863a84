from __future__ import annotations

import io
import os
import subprocess
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bsgal_train.cli import main
from bsgal_train.errors import Detectron2SetupError
from bsgal_train.machine import install_detectron2


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = install_detectron2.importlib.util.find_spec
    monkeypatch.setattr(
        install_detectron2.importlib.util,
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
        install_detectron2.install_detectron2(run=runner)
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
        install_detectron2.install_detectron2(archive, run=FakeRunner("nothing"))


@pytest.mark.usefixtures("not_installed")
def test_a_missing_source_archive_is_named(tmp_path: Path):
    with pytest.raises(Detectron2SetupError, match=r"no source archive at .*absent\.tar\.gz"):
        install_detectron2.install_detectron2(tmp_path / "absent.tar.gz", run=FakeRunner("nothing"))


@pytest.mark.usefixtures("not_installed")
def test_a_failed_build_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = write_archive(tmp_path / "source.tar.gz", {"detectron2-0.6/setup.py": b""})
    monkeypatch.setattr(install_detectron2, "_check_hash", lambda archive: None)
    message = "building the wheel failed.*setuptools and wheel are current"
    with pytest.raises(Detectron2SetupError, match=message):
        install_detectron2.install_detectron2(archive, run=FakeRunner("bdist_wheel"))


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "source/../../outside.py"])
def test_unpacking_refuses_members_outside_the_folder(tmp_path: Path, name: str):
    archive = write_archive(tmp_path / "source.tar.gz", {name: b"x"})
    with pytest.raises(Detectron2SetupError, match="do not use this archive"):
        install_detectron2._unpack(archive, tmp_path / "inner" / "source")
    assert not list(tmp_path.rglob("outside.py"))


def test_unpacking_refuses_links(tmp_path: Path):
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("source/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(Detectron2SetupError, match="not a plain file"):
        install_detectron2._unpack(archive, tmp_path / "source")


def test_an_installed_detectron2_is_left_alone():
    lines: list[str] = []
    runner = FakeRunner("nothing")
    install_detectron2.install_detectron2(report=lines.append, run=runner)
    assert runner.commands == []
    assert "left as it is" in lines[0]


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
