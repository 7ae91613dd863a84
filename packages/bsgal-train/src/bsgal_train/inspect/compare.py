"""What differs between two runs: in recipe, data, pool and versions, and in results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsgal_train.evaluation.tables import percent_text
from bsgal_train.run_folder.layout import RunFolder, differing, read_json

__all__ = ["RunComparison", "compare_runs"]

_METRICS = ("ap", "ap50", "ap75", "aps", "apm", "apl", "apr", "apc", "apf", "ar")
_MAX_CATEGORIES = 10
# Of the results, what is compared under a heading of its own.
_OWN_SECTIONS = ("evaluation", "recipe", "provenance")

Pair = tuple[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunComparison:
    """Hold what differs; equal things are left out.

    Attributes:
        names: The two folders.
        recipe: Settings by dotted key.
        inputs: Hashes and sizes of data and pool, by dotted key.
        versions: Of libraries.
        summary: Other numbers of the results, such as the share that was accepted.
        metrics: By IoU type and metric, between 0 and 1; equal ones too. Empty where a run has no
            results, or theirs must not be compared.
        categories: By category name, AP of the last IoU type, most changed first.
        remarks: Why something could not be compared.
    """

    names: tuple[str, str]
    recipe: Mapping[str, Pair]
    inputs: Mapping[str, Pair]
    versions: Mapping[str, Pair]
    summary: Mapping[str, Pair]
    metrics: Mapping[str, tuple[float | None, float | None]]
    categories: Mapping[str, tuple[float, float]]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"A = {self.names[0]}"
        yield f"B = {self.names[1]}"
        for title, pairs in (
            ("recipe", self.recipe),
            ("data and pool", self.inputs),
            ("versions", self.versions),
            ("run", self.summary),
        ):
            yield f"\n{title}: {'no difference' if not pairs else ''}".rstrip()
            for key, (a, b) in pairs.items():
                yield f"  {key}: {_short(a)} -> {_short(b)}"
        if self.metrics:
            yield f"\nresults, in percent{'A':>19}{'B':>8}{'B - A':>8}"
            for key, (one, other) in self.metrics.items():
                yield f"  {key:<30}{_cells(one, other)}"
        if self.categories:
            yield f"\ncategories that changed most{'A':>12}{'B':>8}{'B - A':>8}"
            for name, (one, other) in list(self.categories.items())[:_MAX_CATEGORIES]:
                yield f"  {name:<30.30}{_cells(one, other)}"
        for remark in self.remarks:
            yield f"\nnote: {remark}"


def compare_runs(a: str | Path, b: str | Path) -> RunComparison:
    """Compare the output folders of two runs, finished or not, or of two evaluations.

    Raises:
        ValueError: A folder holds no run.
    """
    folders = Path(a), Path(b)
    files = [RunFolder(folder) for folder in folders]
    results = [read_json(one.results) for one in files]
    # An evaluation's file holds everything.
    recipes, provenance = (
        [
            read_json(getattr(one, name)) or (result or {}).get(name)
            for one, result in zip(files, results, strict=True)
        ]
        for name in ("recipe", "provenance")
    )
    for folder, recipe in zip(folders, recipes, strict=True):
        if recipe is None:
            raise ValueError(f"{folder} holds no run: there is no recipe.json in it")
    remarks = [
        f"{folder} has no results yet"
        for folder, result in zip(folders, results, strict=True)
        if result is None
    ]
    found = [(result or {}).get("evaluation") or {} for result in results]
    protocols = [one.get("protocol") for one in found]
    comparable = all(found) and protocols[0] == protocols[1]
    if all(found) and not comparable:
        remarks.append(
            "results of different protocols must not be compared: "
            f"{_protocol(protocols[0])} and {_protocol(protocols[1])}"
        )
    return RunComparison(
        names=(str(a), str(b)),
        recipe=differing(recipes[0], recipes[1]),
        inputs=differing(*((one or {}).get("inputs", {}) for one in provenance)),
        versions=differing(*((one or {}).get("versions", {}) for one in provenance)),
        summary=differing(
            *(
                {key: value for key, value in (one or {}).items() if key not in _OWN_SECTIONS}
                for one in results
            )
        ),
        metrics=_metrics(*found) if comparable else {},
        categories=_categories(*found) if comparable else {},
        remarks=tuple(remarks),
    )


def _metrics(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, tuple[float | None, float | None]]:
    return {
        f"{iou_type} {name}": (values[name], b["metrics"][iou_type][name])
        for iou_type, values in a["metrics"].items()
        if iou_type in b["metrics"]
        for name in _METRICS
    }


def _categories(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    shared = [iou_type for iou_type in a["metrics"] if iou_type in b["metrics"]]
    if not shared:
        return {}
    values, others = (
        {item["name"]: item["ap"].get(shared[-1]) for item in one["categories"]} for one in (a, b)
    )
    pairs = {
        name: (value, others[name])
        for name, value in values.items()
        if value is not None and others.get(name) is not None and value != others[name]
    }
    return dict(sorted(pairs.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def _protocol(protocol: Mapping[str, Any] | None) -> str:
    if protocol is None:
        return "none"
    return f"{protocol['name']} ({protocol['max_detections']} per {protocol['per']})"


def _short(value: Any) -> str:
    text = str(value)
    # Enough of a hash to tell two apart.
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def _cells(one: float | None, other: float | None) -> str:
    change = "-" if one is None or other is None else f"{100 * (other - one):+.1f}"
    return f"{percent_text(one):>8}{percent_text(other):>8}{change:>8}"
