"""What came of a demo, read back from its folders."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bsgal_train.demo.settings import DemoSettings
from bsgal_train.demo.stages import StageRecord
from bsgal_train.evaluation.tables import percent
from bsgal_train.inspect.report import Arm, Fact, Report, StageTime
from bsgal_train.inspect.report.pictures import pictured
from bsgal_train.inspect.report.rejected import rejected_by_evidence
from bsgal_train.inspect.report.verdicts import NOTES, Verdicts
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.layout import RunFolder

__all__ = ["demo_arms", "demo_report", "demo_table"]

ARMS = {
    "baseline": "the shipped detector, as it is",
    "control": "continued on real data only",
    "pasted": "continued with everything pasted",
    "judged": "continued with what is not rejected",
}
SHOWN_INSTANCES = 18


def demo_arms(out_dir: Path) -> list[Arm]:
    """Return the rows of the result table."""
    results = {
        name: json.loads(RunFolder(out_dir / name).results.read_text(encoding="utf-8"))
        for name in ARMS
    }
    control_s = results["control"].get("step_s")
    return [
        Arm(
            name=title,
            steps=results[name].get("n_steps") or 0,
            segm=_percents(results[name]["evaluation"], "segm"),
            bbox=_percents(results[name]["evaluation"], "bbox"),
            accepted_share=results[name].get("accepted_share"),
            seconds_per_step=results[name].get("step_s"),
            cost_ratio=results[name]["step_s"] / control_s if "step_s" in results[name] else None,
        )
        for name, title in ARMS.items()
    ]


def demo_table(out_dir: Path) -> str:
    """Return the result table as text."""
    lines = [
        f"{'':40s}{'AP':>6s}{'APr':>6s}{'APc':>6s}{'APf':>6s}{'accepted':>10s}{'s/step':>8s}{'cost':>7s}"
    ]
    for arm in demo_arms(out_dir):
        values = "".join(f"{arm.segm[name]:6.1f}" for name in ("AP", "APr", "APc", "APf"))
        accepted = "-" if arm.accepted_share is None else f"{100 * arm.accepted_share:.0f} %"
        seconds = "-" if arm.seconds_per_step is None else f"{arm.seconds_per_step:.2f}"
        cost = "-" if arm.cost_ratio is None else f"{arm.cost_ratio:.2f}x"
        lines.append(f"{arm.name:40s}{values}{accepted:>10s}{seconds:>8s}{cost:>7s}")
    return "\n".join(lines)


def demo_report(out_dir: Path, settings: DemoSettings, records: Sequence[StageRecord]) -> Report:
    """Gather the report of a finished demo."""
    verdicts = Verdicts(read_decisions(RunFolder(out_dir / "judged").decisions))
    return Report(
        title="bsgal demo",
        summary=(
            "A small long-tailed data set, objects drawn by the built-in text-to-image model, and "
            "a detector continued without them, with all of them, and with those that no evidence "
            "speaks against. Before its first step, the last run's detector looks at every drawn "
            "object twice; what looks worse than real objects of its category is rejected, and "
            "others are drawn in its place."
        ),
        arms=demo_arms(out_dir),
        verdict_note=NOTES["evidence"],
        score_name="p-value",
        acceptance=verdicts.acceptance(),
        histograms=verdicts.histograms(),
        best_accepted=pictured(verdicts.best_accepted(SHOWN_INSTANCES), out_dir / "pool"),
        rejections=rejected_by_evidence(out_dir / "judged", SHOWN_INSTANCES),
        steps=verdicts.over_time(),
        stages=[
            StageTime(
                title=record.title,
                seconds=record.seconds,
                peak_memory_gib=record.peak_memory_gib,
                summary=record.summary,
            )
            for record in records
        ],
        facts=[
            *(
                Fact(name=name, value=metadata.version(name))
                for name in ("bsgal-train", "bsgal-score", "torch", "diffusers")
            ),
            Fact(name="Python", value=platform.python_version()),
            Fact(name="seed", value=str(settings.seed)),
            Fact(name="threads", value=str(settings.threads)),
        ],
    )


def _percents(evaluation: dict[str, Any], iou_type: str) -> dict[str, float]:
    metrics = evaluation["metrics"][iou_type]
    shown = {"AP": "ap", "APr": "apr", "APc": "apc", "APf": "apf"}
    return {name: percent(metrics[key]) for name, key in shown.items()}
