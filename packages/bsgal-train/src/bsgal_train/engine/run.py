"""Train or evaluate a recipe: everything is checked before the first step."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.derived import file_sha256
from bsgal_train.annotations.paths import DataPaths
from bsgal_train.detector import (
    best_device,
    build_detector,
    load_weights,
    save_detector,
)
from bsgal_train.engine.assembly import Assembly, assemble
from bsgal_train.engine.hooks import Hook, HookList
from bsgal_train.engine.progress import Progress
from bsgal_train.engine.steering import Steering
from bsgal_train.engine.trainer import Trainer
from bsgal_train.engine.validation import ValidateOnTheWay, validate
from bsgal_train.evaluation import LvisResult
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import read_decisions
from bsgal_train.run_folder.layout import RunFolder, differing_settings, write_json
from bsgal_train.run_folder.provenance import (
    describe_annotations,
    describe_inputs,
    save_provenance,
    versions,
)
from bsgal_train.run_folder.run_log import read_metrics

__all__ = ["RunResult", "evaluate", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of a run.

    Attributes:
        folder: its output folder.
        evaluation: on the validation annotations; None where there are none.
        step_s: seconds of a step with its loading; the median over the rows of metrics.
        accepted_share: accepted share of the judged units; None if nothing was judged.
        n_steps: steps that were taken.
        stopped: why a hook ended it before the last step of its recipe; None if none did.
    """

    folder: Path
    evaluation: LvisResult | None
    step_s: float
    accepted_share: float | None
    n_steps: int
    stopped: str | None


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
    steering: Steering | None = None,
) -> RunResult:
    """Train a recipe in `folder`, or go on where an earlier start of it stopped.

    Writes `recipe.json`, `provenance.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
    `decisions/`, `detector.safetensors` with `detector.json`, `predictions/` and `results.json`.

    Args:
        recipe: the settings; all of them are checked against the data before the first step.
        folder: made if missing.
        hooks: called after every step, in this order; a resumed run is given the same ones, which
            go on from their state in the checkpoint.
        progress: told after every step.
        steering: weighs the pool's instances as training goes on; None: all alike. A resumed run
            is given the same one.

    Raises:
        TypeError: if a hook is none, or its state cannot be stored.
        ValueError: for bad settings, annotations or pool, or a folder of another recipe.
        OSError: if the folder cannot be written.
        TooLittleMemoryError: if gradients and their cache cannot fit.
        DivergedError: if a loss is not finite.
        TrainingInterruptedError: after Ctrl-C, once a checkpoint is written.
    """
    folder = Path(folder)
    data = DataPaths.of(recipe.data)
    annotations = data.load_training()
    validation = data.load_validation()
    if validation is not None:
        _check_same_categories(annotations, validation)
        if recipe.schedule.eval_every:
            # First, so that the others see its numbers.
            hooks = [ValidateOnTheWay(validation), *hooks]
    called = HookList(hooks)
    assembly = assemble(recipe, annotations, steering=steering)
    inputs = describe_inputs(annotations, assembly.annotations_sha256, validation, assembly.pool)
    _prepare_folder(folder, recipe, inputs)

    Trainer(
        recipe=recipe,
        steps=assembly.steps,
        batches=assembly.batches,
        folder=folder,
        hooks=called,
        progress=progress,
    ).run()
    with assembly.steps.averaged():
        return _finish(folder, recipe, assembly, validation, called.stopped)


def evaluate(
    recipe: Recipe,
    source: str,
    folder: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> LvisResult:
    """Evaluate a stored detector on the recipe's validation annotations.

    Args:
        recipe: only its data and detector settings matter; those of a run are in its
            `recipe.json`.
        source: output folder of a run, or `baseline`.
        folder: where `predictions/` and `results.json` go; None writes nothing. The latter holds
            the recipe, hashes and versions too, so that it can be told where numbers are from.
        progress: told after every image.

    Raises:
        ValueError: for bad annotations or weights, or no validation annotations.
    """
    validation = DataPaths.of(recipe.data).load_validation()
    if validation is None:
        raise ValueError("there is nothing to evaluate on: set data.val_json")
    if folder is not None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
    names = [category.name for category in validation.categories]
    detector = build_detector(recipe.detector, len(names))
    fresh = load_weights(detector, source, names)
    detector.to(best_device())
    if fresh:
        raise ValueError(
            f"the detector in {source} knows other categories than {validation.path}: it was "
            "trained on others; evaluate it on those, or train it on these first"
        )
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(processes.broadcast(scratch)) if folder is None else folder
        found = validate(
            detector, validation, recipe, RunFolder(base).predictions, progress=progress
        )
        # The folder goes with the first process's block.
        processes.wait_for_all()
    if folder is not None and processes.rank() == 0:
        own = RunFolder(Path(source)).detector
        summary = {
            "evaluation": found.result.to_dict(),
            "skipped_files": {"validation": found.skipped},
            "detector": {
                "source": source,
                "sha256": file_sha256(own) if own.is_file() else None,
            },
            "recipe": recipe.to_dict(),
            "provenance": {
                "inputs": {
                    "validation": describe_annotations(validation, file_sha256(validation.path))
                },
                "versions": versions(),
            },
        }
        write_json(RunFolder(folder).results, summary)
    return found.result


def _check_same_categories(training: LvisAnnotations, validation: LvisAnnotations) -> None:
    ids = [[c.category_id for c in split.categories] for split in (training, validation)]
    if ids[0] != ids[1]:
        differing = sorted(set(ids[0]) ^ set(ids[1]))
        raise ValueError(
            f"{training.path} and {validation.path} must define the same categories; "
            f"{len(differing)} ids are in one only, first {differing[:5]}"
        )


def _prepare_folder(folder: Path, recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Make a run's folder with its recipe and provenance, or check that it is the same run."""
    with processes.first_before_others():
        if processes.rank() == 0:
            _check_or_save_recipe(folder, recipe)
            save_provenance(folder, inputs)


def _check_or_save_recipe(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = RunFolder(folder).recipe
    if path.is_file():
        differing = differing_settings(Recipe.load(path), recipe)
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings: "
                + ", ".join(f"{key}={a!r} (now {b!r})" for key, (a, b) in differing.items())
                + "; choose another output folder, or delete this one"
            )
    recipe.save(path)


def _finish(
    folder: Path,
    recipe: Recipe,
    assembly: Assembly,
    validation: LvisAnnotations | None,
    stopped: str | None,
) -> RunResult:
    """Write the trained detector, evaluate it, and sum the run up."""
    files = RunFolder(folder)
    is_first = processes.rank() == 0
    if is_first:
        names = [category.name for category in assembly.annotations.categories]
        save_detector(folder, assembly.detector, recipe.detector, names)
    found = None
    if validation is not None:
        found = validate(assembly.detector, validation, recipe, files.predictions)
    rows = read_metrics(files.metrics)
    step_s = statistics.median(row["step_s"] for row in rows if "step_s" in row)
    shares = read_decisions(files.decisions).column("accepted_share").to_pylist()
    accepted_share = shares[-1] if shares else None
    summary = {
        "n_steps": assembly.steps.n_done,
        "stopped": stopped,
        "step_s": step_s,
        "accepted_share": accepted_share,
        "n_skipped": int(max(row.get("n_skipped", 0) for row in rows)),
        "evaluation": None if found is None else found.result.to_dict(),
        "skipped_files": {
            "training": assembly.steps.skipped.state_dict(),
            "validation": {} if found is None else found.skipped,
        },
    }
    if is_first:
        write_json(files.results, summary)
    return RunResult(
        folder=folder,
        evaluation=None if found is None else found.result,
        step_s=step_s,
        accepted_share=accepted_share,
        n_steps=assembly.steps.n_done,
        stopped=stopped,
    )
