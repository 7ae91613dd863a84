"""Every check and every main job of the repository: `nox --list` names them.

All sessions share one virtual environment (`.nox/shared`): torch alone takes gigabytes. It is
made on first use and brought up to date when a pyproject.toml or constraints.txt changes. Each
package's tests run in a second, small environment that holds links to that package's declared
requirements and nothing else, so that an undeclared import fails.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
SHARED = ROOT / ".nox" / "shared"
CHECKED = ["packages", "benchmarks", "integration_tests", "models", "noxfile.py", "conftest.py"]
# detectron2 crops polygons with shapely and does not require it.
TOOLS = ["pytest", "hypothesis", "ruff", "mypy", "packaging", "shapely"]
# What the packages, and what some of their requirements publish as source archives only, are built
# with. A new virtual environment has an old setuptools or none.
BUILD_TOOLS = ["setuptools", "wheel", "hatchling", "editables"]
# Other readers of annotations, as oracles. Their declared requirements include a second OpenCV; the
# tests need none of them.
READERS = ["lvis==0.5.3", "supervision==0.31.2", "pydeprecate==0.13.0", "defusedxml==0.7.1"]
EXTRAS = {
    "bsgal-generate": "[ray]",
    "bsgal-mask": "[u2net,clip,clipseg,sam]",
    "bsgal-paste": "[torchvision]",
    "bsgal-score": "[examples]",
    "bsgal-train": "[builtin]",
}
# Run among the integration tests: they compare with detectron2 itself.
BESIDE_DETECTRON2 = ["packages/bsgal-paste/tests/test_detectron2.py"]
# Benchmarks that time what a user would pick instead: benchmarks/requirements.txt.
NEEDS_PEERS = {
    "score_peers", "score_offline", "score_growth", "paste_speed", "train_study",
    "train_study_generated",
}  # fmt: skip

nox.options.sessions = ["lint", "types", "tests"]
nox.needs_version = ">=2024.4.15"


def _program(environment: Path, name: str) -> str:
    folder, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    return str(environment / folder / f"{name}{suffix}")


def _fingerprint(constraints: Path) -> str:
    """Hash everything that decides what an environment holds."""
    digest = hashlib.sha256(sys.version.encode())
    files = [ROOT / "noxfile.py", constraints, *ROOT.glob("packages/*/pyproject.toml")]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _environment(session: nox.Session, folder: Path, constraints: Path) -> str:
    """Make an environment with all packages, or bring it up to date; return its interpreter."""
    python, stamp = _program(folder, "python"), folder / "bsgal-fingerprint"
    fingerprint = _fingerprint(constraints)
    if stamp.is_file() and stamp.read_text() == fingerprint:
        return python
    if not Path(python).exists():
        session.run(sys.executable, "-m", "venv", str(folder), external=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    session.log(f"installing {folder} (the first time: several minutes, about 7 GB)")
    session.run(*pip, *BUILD_TOOLS, *TOOLS, external=True)
    editable = [
        part
        for name in PACKAGES
        for part in ("--editable", f"{ROOT / 'packages' / name}{EXTRAS.get(name, '')}")
    ]
    session.run(*pip, "--no-build-isolation", *editable, external=True)
    session.run(*pip, "--no-deps", *READERS, external=True)
    session.run(_program(folder, "bsgal-train"), "setup-detectron2", external=True)
    session.run(_program(folder, "bsgal-mask"), "install-u2netp", external=True)
    stamp.write_text(fingerprint)
    return python


def shared_python(session: nox.Session) -> str:
    """Return the shared environment's interpreter, after making or updating the environment."""
    return _environment(session, SHARED, ROOT / "constraints.txt")


def _test_alone(session: nox.Session, python: str, part: str, alone: Path, *options: str) -> None:
    """Run a package's tests among its declared requirements, linked out of python's environment."""
    package = ROOT / "packages" / part
    script = str(ROOT / "integration_tests" / "alone_environment.py")
    session.run(python, script, str(package), str(alone), external=True)
    elsewhere = [f"--ignore={ROOT / path}" for path in BESIDE_DETECTRON2]
    session.run(
        _program(alone, "python"), "-m", "pytest", f"--rootdir={ROOT}", f"{package / 'tests'}",
        *elsewhere, *options, *session.posargs, env=_threads(), external=True,
    )  # fmt: skip


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """Run the whole loop on the built-in data: generate, cut, paste, score, train, report."""
    arguments = session.posargs or ["--out", "runs/demo"]
    shared_python(session)
    session.run(_program(SHARED, "bsgal-train"), "demo", *arguments, external=True)


@nox.session(venv_backend="none")
@nox.parametrize("part", [*PACKAGES, "integration"], ids=[*PACKAGES, "integration"])
def tests(session: nox.Session, part: str) -> None:
    """Test each package among its declared requirements alone, then the packages together."""
    python = shared_python(session)
    if part == "integration":
        session.run(
            python, "-m", "pytest", "integration_tests", *BESIDE_DETECTRON2, *session.posargs,
            env=_threads(), external=True,
        )  # fmt: skip
    else:
        _test_alone(session, python, part, ROOT / ".nox" / "alone" / part)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style and format; changes nothing."""
    python = shared_python(session)
    session.run(python, "-m", "ruff", "check", *CHECKED, external=True)
    session.run(python, "-m", "ruff", "format", "--check", *CHECKED, external=True)


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    sources = [str(path.parent) for path in sorted(ROOT.glob("packages/*/src/*/__init__.py"))]
    session.run(shared_python(session), "-m", "mypy", *sources, external=True)


@nox.session(venv_backend="none", default=False)
@nox.parametrize("part", PACKAGES, ids=PACKAGES)
def minimums(session: nox.Session, part: str) -> None:
    """Test each package with the lowest versions that it declares; before a release."""
    folder = ROOT / ".nox" / "minimums"
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "lowest.txt"
    constraints.write_text("\n".join(_lowest_versions(session)) + "\n")
    python = _environment(session, folder, constraints)
    alone = ROOT / ".nox" / "minimums-alone" / part
    # What old releases warn of is not ours to mend, and an old Triton compiles for AMD's cards only
    # beside ROCm.
    ahead_of_time = ROOT / "packages/bsgal-score/tests/test_kernel_resources.py"
    _test_alone(session, python, part, alone, "-Wdefault", f"--ignore={ahead_of_time}")


def _lowest_versions(session: nox.Session) -> list[str]:
    """Return `name==version` for the lower bound of every requirement of every package."""
    lowest: dict[str, tuple[str, str]] = {}
    for package in PACKAGES:
        project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"]
        extras: dict[str, list[str]] = project.get("optional-dependencies", {})
        for line in itertools.chain(project["dependencies"], *extras.values()):
            requirement = Requirement(line)
            if requirement.name in PACKAGES:
                continue
            bounds = [one.version for one in requirement.specifier if one.operator == ">="]
            if len(bounds) != 1:
                session.error(f"{package} declares {line!r} without a lowest version")
            before, version = lowest.setdefault(requirement.name, (package, bounds[0]))
            if version != bounds[0]:
                session.error(
                    f"{package} declares {line!r}, but {before} {requirement.name}>={version}: "
                    "one environment tests both, so the bounds must agree"
                )
    return [f"{name}=={version}" for name, (_, version) in sorted(lowest.items())]


@nox.session(venv_backend="venv", reuse_venv=True, default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site into build/site, strictly; `-- serve` shows it while writing."""
    session.install("--quiet", "--requirement", "docs/requirements.txt")
    # The theme's banner about another generator.
    environment = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", *(session.posargs or ["build", "--quiet"]), env=environment)


@nox.session(venv_backend="none", default=False)
def gpu(session: nox.Session) -> None:
    """Run the tests marked `gpu`; fails where none of them ran."""
    command = [shared_python(session), "-m", "pytest", "-m", "gpu", "packages", *session.posargs]
    session.run(*command, external=True)


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Run benchmarks by name, or by words that a name begins or ends with: `-- cache [OPTIONS]`."""
    arguments = session.posargs
    n_names = next((i for i, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    names, options = arguments[:n_names], arguments[n_names:]
    known = sorted(path.stem.removeprefix("bench_") for path in ROOT.glob("benchmarks/bench_*.py"))
    chosen = [
        name
        for name in known
        if any(f"{name}_".startswith(f"{one}_") or name.endswith(f"_{one}") for one in names)
    ]
    if not chosen:
        session.error(f"name a benchmark after `--`; there are: {', '.join(known)}")
    python = shared_python(session)
    if any(name in NEEDS_PEERS for name in chosen):
        constraint = ["--constraint", str(ROOT / "constraints.txt")]
        pip = [python, "-m", "pip", "install", "--quiet", *constraint]
        session.run(*pip, "--requirement", "benchmarks/requirements.txt", external=True)
    for name in chosen:
        session.run(python, f"benchmarks/bench_{name}.py", *options, external=True)


@nox.session(venv_backend="none", default=False)
def tables(session: nox.Session) -> None:
    """Fill the tables of the READMEs and of the site from benchmarks/results."""
    session.run(shared_python(session), "benchmarks/tables.py", *session.posargs, external=True)


@nox.session(venv_backend="none", default=False)
def build(session: nox.Session) -> None:
    """Build the wheel of every package into dist/, and install them from there alone."""
    python, installed = shared_python(session), ROOT / "build" / "installed"
    pip = [python, "-m", "pip", "--quiet"]
    session.run(
        *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist",
        *(f"packages/{name}" for name in PACKAGES), external=True,
    )  # fmt: skip
    session.run(
        *pip, "install", "--no-index", "--find-links", "dist", "--no-deps", "--upgrade",
        "--target", str(installed), *PACKAGES, external=True,
    )  # fmt: skip
    modules = ", ".join(name.replace("-", "_") for name in PACKAGES)
    check = (
        f"import {modules}; found = [one.__file__ for one in ({modules})]; "
        f"assert all(one.startswith({str(installed)!r}) for one in found), found"
    )
    session.run(python, "-c", check, env={"PYTHONPATH": str(installed)}, external=True)


@nox.session(venv_backend="none", default=False)
def freeze(session: nox.Session) -> None:
    """Write what the shared environment holds into constraints.txt."""
    python = shared_python(session)
    frozen = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze", "--exclude-editable"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    ours = {*PACKAGES, "pb1-detectron2", "pip", "setuptools", "wheel"}
    header = "# What the tests were last run with. Written by `nox -s freeze`.\n"
    lines = [line for line in frozen if line.split("==")[0] not in ours]
    (ROOT / "constraints.txt").write_text(header + "\n".join(lines) + "\n")
