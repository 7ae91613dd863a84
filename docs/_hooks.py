"""End the build where a public name has no docstring: every one is on a reference page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]


def on_pre_build(config: Any) -> None:
    """Look at what the five packages export, without importing them."""
    missing = []
    for source in sorted(ROOT.glob("packages/*/src")):
        package = griffe.load(next(source.glob("bsgal_*")).name, search_paths=[source])
        missing += undocumented(package)
    if missing:
        raise PluginError("public names without a docstring:\n" + "\n".join(missing))


def undocumented(package: Any) -> list[str]:
    """Return the exported names, and public members of exported classes, without a docstring."""
    found = []
    for name in package.exports or ():
        if name.startswith("__"):
            continue
        if name not in package.members:
            found.append(f"{package.path}.{name} (listed in __all__, but not defined)")
            continue
        member = package[name]
        target = member.final_target if member.is_alias else member
        if not target.has_docstring:
            found.append(f"{package.path}.{name}")
        if target.is_class:
            own = (one for one in target.members.values() if one.is_function and one.is_public)
            found += [
                f"{package.path}.{name}.{one.name}"
                for one in own
                if not one.has_docstring and not one.name.startswith("__")
            ]
    return found
