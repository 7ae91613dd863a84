"""Make an environment that holds one package and what it declares, and nothing else.

Usage: python alone_environment.py PACKAGE_FOLDER ENVIRONMENT_FOLDER

Installing torch anew for each package would take gigabytes and minutes. Instead the environment's
site-packages holds the package, installed from a wheel built now, and a link to each file of the
distributions in the closure of its declared requirements, as they stand in the environment that
runs this script. What is not declared is not there, so importing it fails as it would for a user.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

# pip because every environment that a user installs a package into has it.
TEST_TOOLS = ("pytest", "hypothesis", "pip")
# What tests need beside the declared requirements, linked without requirements of its own:
# detectron2, which `bsgal-train setup-detectron2` installs (for bsgal-generate only the table of
# LVIS categories in it: it cannot be imported there); and lvis, the oracle of the evaluation.
BESIDE = {"bsgal-generate": ("pb1-detectron2",), "bsgal-train": ("pb1-detectron2", "lvis")}


def canonical(name: str) -> str:
    """Return a distribution's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield the requirements of an installed distribution that apply here."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def closure(roots: list[tuple[str, frozenset[str]]]) -> set[str]:
    """Return the names of all installed distributions that the roots require, roots included."""
    seen: dict[str, frozenset[str]] = {}
    queue = list(roots)
    while queue:
        name, extras = queue.pop()
        key = canonical(name)
        if key in seen and extras <= seen[key]:
            continue
        try:
            metadata.distribution(key)
        except metadata.PackageNotFoundError:
            # An optional requirement of a third party that is not installed here.
            continue
        seen[key] = seen.get(key, frozenset()) | extras
        queue += [(found.name, frozenset(found.extras)) for found in requirements_of(key, extras)]
    return set(seen)


def link_distribution(name: str, site_packages: Path) -> None:
    """Link the top-level files and folders of one installed distribution."""
    distribution = metadata.distribution(name)
    for file in distribution.files or []:
        top = file.parts[0]
        target = Path(str(distribution.locate_file(top)))
        link = site_packages / top
        if top != ".." and top != "__pycache__" and not link.exists() and target.exists():
            link.symlink_to(target, target_is_directory=target.is_dir())


def main() -> int:
    """Make the environment; the command line's two arguments are in the module's docstring."""
    package, environment = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    name = package.name
    venv.create(environment, clear=True, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = environment / "lib" / version / "site-packages"

    declared = metadata.metadata(name).get_all("Provides-Extra") or []
    roots = [(name, frozenset(declared)), *((tool, frozenset[str]()) for tool in TEST_TOOLS)]
    wanted = closure(roots).union(BESIDE.get(name, ()))
    ours = sorted(found for found in wanted if found.startswith("bsgal-"))
    for distribution in sorted(wanted.difference(ours)):
        link_distribution(distribution, site_packages)
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "--quiet"]
        sources = [str(package.parent / found) for found in ours]
        options = ["--no-deps", "--no-build-isolation", "--wheel-dir", wheels]
        subprocess.run([*pip, "wheel", *options, *sources], check=True)
        built = [str(wheel) for wheel in sorted(Path(wheels).glob("*.whl"))]
        install = ["install", "--no-deps", "--target", str(site_packages), *built]
        subprocess.run([*pip, *install], check=True)
    print(f"{name}: alone with {len(wanted) - len(ours)} distributions; from the tree: {ours}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
