"""The report of one run, from what the run left in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bsgal_train.evaluation.tables import METRICS, percent
from bsgal_train.inspect.report.content import (
    CategoryRow,
    Fact,
    JudgedInstance,
    Line,
    MetricsRow,
    Rejections,
    Report,
)
from bsgal_train.inspect.report.pictures import pictured
from bsgal_train.inspect.report.rejected import rejected_by_evidence
from bsgal_train.inspect.report.verdicts import NOTES, InstanceVerdicts, Verdicts
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.layout import RunFolder, read_json
from bsgal_train.run_folder.provenance import read_provenance
from bsgal_train.run_folder.run_log import read_metrics

__all__ = ["run_report"]

_EVALUATIONS = {"ap": ("AP", "ink"), "apr": ("APr", "r"), "apc": ("APc", "c"), "apf": ("APf", "f")}
_IOU_TYPES = {"segm": "masks", "bbox": "boxes"}
_MAX_SKIPPED = 20


def run_report(folder: str | Path, *, n_pictures: int = 18) -> Report:
    """Gather the report of a run, also of one that has not come to its end.

    Args:
        folder: output folder of a run.
        n_pictures: instances shown at most among the best accepted, and the worst rejected.

    Raises:
        ValueError: the folder holds no run.
    """
    folder = Path(folder)
    files = RunFolder(folder)
    if not files.recipe.is_file():
        raise ValueError(f"{folder} holds no run: there is no {files.recipe.name} in it")
    recipe = Recipe.load(files.recipe)
    metrics = read_metrics(files.metrics)
    verdicts = Verdicts(read_decisions(files.decisions))
    results = read_json(files.results) or {}
    evaluation = results.get("evaluation") or {}
    notes = []
    if not results:
        notes.append("The run has not come to its end: there is no result yet.")
    elif not evaluation:
        notes.append("The run had no validation annotations, so there is no average precision.")
    notes += _skipped_notes(results)
    by_evidence = recipe.selection.effective_reference == "evidence"
    rejections, problem = _rejections(folder, n_pictures) if by_evidence else (None, [])
    notes += problem
    best, worst, problem = _pictured(verdicts, recipe, n_pictures)
    notes += problem
    return Report(
        title=f"Run {folder.resolve().name}",
        summary=_summary(recipe, metrics, results),
        verdict_note=NOTES.get("evidence" if by_evidence else verdicts.granularity, ""),
        score_name="p-value" if by_evidence else "score",
        metrics=_metrics_rows(evaluation),
        metrics_note=_metrics_note(evaluation),
        losses=_lines(metrics, {"loss": ("loss", "ink")}),
        evaluations=_lines(
            metrics, {f"val/{key}": shown for key, shown in _EVALUATIONS.items()}, factor=100
        ),
        acceptance=verdicts.acceptance(),
        histograms=verdicts.histograms(),
        best_accepted=best,
        worst_rejected=worst if rejections is None else (),
        rejections=rejections,
        steps=verdicts.over_time() if verdicts.has_scores else (),
        categories=_categories(evaluation, verdicts),
        notes=notes,
        facts=[*_settings(recipe), *_origins(folder)],
    )


def _rejections(folder: Path, n: int) -> tuple[Rejections | None, list[str]]:
    try:
        return rejected_by_evidence(folder, n), []
    except (OSError, ValueError) as error:
        return None, [f"What speaks against instances is not shown: {error}"]


def _pictured(
    verdicts: Verdicts, recipe: Recipe, n: int
) -> tuple[list[JudgedInstance], list[JudgedInstance], list[str]]:
    best, worst = verdicts.best_accepted(n), verdicts.worst_rejected(n)
    if not best and not worst:
        judged = "without a score" if len(verdicts) else "at all"
        return [], [], [f"No instance was judged {judged}, so none is shown."]
    pool = Path(recipe.paste.pool)
    try:
        shown: list[InstanceVerdicts] = [*best, *worst]
        instances = pictured(shown, pool)
    except (OSError, ValueError) as error:
        return [], [], [f"Instances are not shown: {error}"]
    return instances[: len(best)], instances[len(best) :], []


def _summary(
    recipe: Recipe, metrics: Sequence[Mapping[str, float]], results: Mapping[str, Any]
) -> str:
    last_step = int(max((row["step"] for row in metrics), default=0))
    text = (
        f"Mode {recipe.selection.mode}, {last_step} of {recipe.schedule.n_steps} steps of "
        f"{recipe.schedule.batch_size} images"
    )
    if results.get("step_s"):
        text += f", {results['step_s']:.2f} s per step"
    if results.get("accepted_share") is not None:
        text += f", {100 * results['accepted_share']:.0f} % accepted"
    if results.get("stopped"):
        text += f", ended as {results['stopped']}"
    if results.get("n_skipped"):
        text += f", steps left out as they diverged: {results['n_skipped']}"
    return text + "."


def _skipped_notes(results: Mapping[str, Any]) -> list[str]:
    """Say for each set of images what could not be read, the most frequent first."""
    notes = []
    for what, counts in results.get("skipped_files", {}).items():
        often = sorted(counts, key=lambda reason: (-counts[reason], reason))
        listed = "; ".join(f"{reason} ({counts[reason]} times)" for reason in often[:_MAX_SKIPPED])
        if often:
            more = f"; and {len(often) - _MAX_SKIPPED} more" if len(often) > _MAX_SKIPPED else ""
            notes.append(f"In {what}, {len(often)} files could not be read: {listed}{more}.")
    return notes


def _metrics_rows(evaluation: Mapping[str, Any]) -> list[MetricsRow]:
    metrics: Mapping[str, Mapping[str, float | None]] = evaluation.get("metrics", {})
    return [
        MetricsRow(
            name=title,
            values={name: percent(metrics[key][field]) for name, field in METRICS.items()},
        )
        for key, title in _IOU_TYPES.items()
        if key in metrics
    ]


def _metrics_note(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return ""
    protocol = evaluation["protocol"]
    return (
        f"In percent; protocol {protocol['name']} ({protocol['max_detections']} detections per "
        f"{protocol['per']}); {evaluation['n_images']} images, {evaluation['n_instances']} "
        f"objects, {evaluation['n_predictions']} predictions."
    )


def _lines(
    metrics: Sequence[Mapping[str, float]],
    shown: Mapping[str, tuple[str, str]],
    factor: float = 1.0,
) -> list[Line]:
    lines = []
    for key, (name, style) in shown.items():
        points = [(row["step"], factor * row[key]) for row in metrics if key in row]
        if points:
            lines.append(Line(name=name, style=style, points=points))
    return lines


def _categories(evaluation: Mapping[str, Any], verdicts: Verdicts) -> list[CategoryRow]:
    judged = verdicts.of_categories()
    return [
        CategoryRow(
            category_id=row["category_id"],
            name=row["name"],
            frequency=row["frequency"] or "",
            n_objects=row["n_instances"],
            segm_ap=percent(row["ap"].get("segm")),
            segm_ap50=percent(row["ap50"].get("segm")),
            bbox_ap=percent(row["ap"].get("bbox")),
            n_judged=judged.get(row["category_id"], (0, 0))[0],
            n_accepted=judged.get(row["category_id"], (0, 0))[1],
        )
        for row in evaluation.get("categories", ())
    ]


def _settings(recipe: Recipe) -> list[Fact]:
    default = Recipe.from_dict({}).to_dict()
    return [
        Fact(name=f"{part}.{name}", value=json.dumps(value))
        for part, named in recipe.to_dict().items()
        for name, value in named.items()
        if json.dumps(value) != json.dumps(default[part][name])
    ]


def _origins(folder: Path) -> list[Fact]:
    """Say what the run was made from."""
    content = read_provenance(folder)
    if content is None:
        return []
    facts = [
        Fact(
            name=f"{name} sha256",
            value=f"{one.get('sha256') or one['manifest_sha256']} ({one['n_instances']} instances)",
        )
        for name, one in content["inputs"].items()
        if one is not None
    ]
    return facts + [Fact(name=name, value=value) for name, value in content["versions"].items()]
