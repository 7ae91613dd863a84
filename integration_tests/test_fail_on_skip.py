from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


def exit_code(folder: Path, test: str, *options: str) -> int:
    """Run one test file beside a copy of the repository's conftest.py."""
    repository = folder / "repository"
    repository.mkdir()
    (repository / "conftest.py").write_text(CONFTEST.read_text())
    (repository / "test_it.py").write_text(f"import pytest\n\n{test}\n")
    (repository / "test_other.py").write_text("def test_passes():\n    pass\n")
    (repository / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=repository, check=False, capture_output=True).returncode


SKIPS = {
    "a test": "def test_it():\n    pytest.skip('no reason')",
    "a file": "pytest.importorskip('no_such_module')",
    "a mark": "@pytest.mark.skip(reason='later')\ndef test_it():\n    pass",
}


@pytest.mark.parametrize("test", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_where_that_is_asked_for(test: str, tmp_path: Path) -> None:
    assert exit_code(tmp_path, test, "--fail-on-skip") == 1


def test_a_skip_passes_elsewhere(tmp_path: Path) -> None:
    assert exit_code(tmp_path, SKIPS["a test"]) == 0


def test_a_test_that_needs_a_gpu_may_skip(tmp_path: Path) -> None:
    assert exit_code(tmp_path, f"@pytest.mark.gpu\n{SKIPS['a test']}", "--fail-on-skip") == 0


def test_a_skip_for_photographs_passes_only_where_they_are_absent(tmp_path: Path) -> None:
    skip = "def test_it():\n    pytest.skip('needs the photographs in ../shared/data/coco-mini')"
    assert exit_code(tmp_path, skip, "--fail-on-skip") == 0
    (tmp_path / "shared/data/coco-mini").mkdir(parents=True)
    (tmp_path / "again").mkdir()
    (tmp_path / "again/shared").symlink_to(tmp_path / "shared")
    assert exit_code(tmp_path / "again", skip, "--fail-on-skip") == 1
