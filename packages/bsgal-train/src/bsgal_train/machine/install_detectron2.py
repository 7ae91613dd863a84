"""Build and install detectron2 v0.6 without its C++ part."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from bsgal_train.errors import Detectron2SetupError
from bsgal_train.machine.detectron2_shims import SETUP_COMMAND

__all__ = ["install_detectron2"]

logger = logging.getLogger(__name__)

# The Python files of this source archive equal those of the official v0.6 release.
SOURCE_ARCHIVE = "pb1-detectron2==0.6"
SOURCE_ARCHIVE_FILE = "pb1-detectron2-0.6.tar.gz"
SOURCE_ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# What v0.6 imports. Its own requirement list also pins a formatter, so it is not used.
RUNTIME_REQUIREMENTS = (
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.3",
    "hydra-core>=1.3",
    "yacs>=0.1.8",
    "tabulate>=0.9",
    "cloudpickle",
    "termcolor>=1.1",
    "tensorboard",
    "matplotlib",
    "pycocotools>=2.0.7",
    "tqdm>4.29",
    "pydot",
    "future",
)

Run = Callable[[Sequence[str], Path | None, Mapping[str, str]], "subprocess.CompletedProcess[str]"]


def install_detectron2(
    archive: Path | None = None,
    *,
    report: Callable[[str], None] = logger.info,
    run: Run | None = None,
) -> None:
    """Build a pure-Python wheel of detectron2 v0.6 and install it with what it imports.

    Needs no compiler. The source archive is fetched by pip from the package index this machine is
    configured for, and used only if its hash is the known one. An installed detectron2 is left
    alone.

    Args:
        archive: The source archive, already downloaded; None lets pip download it.
        report: Called with one line per step.
        run: Runs a command with (command, working folder, extra environment).

    Raises:
        Detectron2SetupError: If a step fails; the message names the step and the way out.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and spec.origin is not None:
        report(f"detectron2 is already installed in {Path(spec.origin).parent}; left as it is")
        return
    _check_build_requirements()
    installer = _Installer(run or _run_command)
    with tempfile.TemporaryDirectory(prefix="bsgal-detectron2-") as scratch_name:
        scratch = Path(scratch_name)
        if archive is None:
            report(f"downloading {SOURCE_ARCHIVE}")
            archive = installer.download(scratch)
        _check_hash(archive)
        report("building a wheel without the C++ part")
        wheel = installer.build_wheel(_unpack(archive, scratch / "source"))
        report("installing what detectron2 imports")
        installer.install_requirements()
        report(f"installing {wheel.name}")
        installer.install_wheel(wheel)
    importlib.invalidate_caches()
    report("detectron2 is ready")


def _check_build_requirements() -> None:
    for module in ("torch", "setuptools", "wheel", "pip"):
        if importlib.util.find_spec(module) is None:
            mend = "python -m ensurepip --upgrade" if module == "pip" else f"pip install {module}"
            raise Detectron2SetupError(
                f"building detectron2 needs {module}, which is not installed in {sys.prefix}; "
                f"run `{mend}` and then `{SETUP_COMMAND}` again"
            )


def _check_hash(archive: Path) -> None:
    if not archive.is_file():
        raise Detectron2SetupError(f"there is no source archive at {archive}; check --archive")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SOURCE_ARCHIVE_SHA256:
        raise Detectron2SetupError(
            f"{archive} is not the known source archive of {SOURCE_ARCHIVE}: its SHA-256 is "
            f"{found}, expected {SOURCE_ARCHIVE_SHA256}; delete it and download it again"
        )


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack regular files and folders only, none outside ``folder``; return the source folder."""
    root = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                raise Detectron2SetupError(
                    f"{archive} holds {member.name!r}, which is not a plain file inside the "
                    "archive's own folder; do not use this archive"
                )
            target = root.joinpath(*name.parts)
            content = tar.extractfile(member)
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    sources = [path.parent for path in root.glob("*/setup.py")]
    if len(sources) != 1:
        raise Detectron2SetupError(f"{archive} holds no single folder with a setup.py")
    return sources[0]


class _Installer:
    """The commands that fetch, build and install, each with its own advice on failure."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def download(self, scratch: Path) -> Path:
        environment = {}
        # Since version 26, pip refuses archives that declare a requirement by its address.
        if int(importlib.metadata.version("pip").split(".")[0]) >= 26:
            older_pip = scratch / "pip"
            self._step(
                "installing an older pip into a scratch folder",
                _pip("install", "--target", str(older_pip), "pip<26"),
                advice=_OFFLINE_ADVICE,
            )
            search_path = [str(older_pip), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, search_path))
        requirement = scratch / "requirement.txt"
        requirement.write_text(f"{SOURCE_ARCHIVE} --hash=sha256:{SOURCE_ARCHIVE_SHA256}\n")
        downloads = scratch / "downloads"
        self._step(
            f"downloading {SOURCE_ARCHIVE}",
            _pip(
                *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"),
                *("--require-hashes", "-r", str(requirement), "-d", str(downloads)),
            ),
            environment=environment,
            advice=_OFFLINE_ADVICE,
        )
        return _only_file(downloads, "*.tar.gz", "downloading")

    def build_wheel(self, source: Path) -> Path:
        self._step(
            "building the wheel",
            [sys.executable, "setup.py", "build_py", "bdist_wheel", "--skip-build"],
            folder=source,
            advice="check that torch, setuptools and wheel are current (pip install --upgrade)",
            n_lines=15,
        )
        return _only_file(source / "dist", "*.whl", "building the wheel")

    def install_requirements(self) -> None:
        self._step(
            "installing what detectron2 imports",
            _pip("install", *RUNTIME_REQUIREMENTS),
            advice=f"install these first, then run `{SETUP_COMMAND}` again: "
            + " ".join(RUNTIME_REQUIREMENTS),
        )

    def install_wheel(self, wheel: Path) -> None:
        self._step(
            "installing the wheel",
            _pip("install", "--no-deps", str(wheel)),
            advice="check that this Python environment can be written to",
        )

    def _step(
        self,
        what: str,
        command: Sequence[str],
        *,
        advice: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        n_lines: int = 1,
    ) -> None:
        done = self._run(command, folder, environment or {})
        said = (done.stdout + done.stderr).strip()
        logger.info("%s: %s\n%s", what, " ".join(command), said)
        if done.returncode != 0:
            last = "\n".join(said.splitlines()[-n_lines:])
            raise Detectron2SetupError(
                f"{what} failed (exit code {done.returncode}); {advice}; `bsgal-train "
                f"--verbose ...` shows all of its output, which ends with: {last}"
            )


_OFFLINE_ADVICE = (
    "check the connection to the package index, or fetch "
    f"{SOURCE_ARCHIVE_FILE} (version 0.6 of pb1-detectron2, SHA-256 {SOURCE_ARCHIVE_SHA256}) "
    f"elsewhere and run `{SETUP_COMMAND} --archive FILE`"
)


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _only_file(folder: Path, pattern: str, step: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise Detectron2SetupError(f"{step} left {len(files)} files {pattern} instead of one")
    return files[0]


def _run_command(
    command: Sequence[str], folder: Path | None, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
