"""Train or evaluate a recipe: everything is checked before the first step."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsgal_paste import (
    CategoryBalancedSampler,
    CopyPaste,
    InstancePool,
    NormalScale,
)
from bsgal_train import processes
from bsgal_train._data_findings import lvis_v1_train_problem
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.builtin.dataset import ensure_builtin_dataset
from bsgal_train.data import (
    ClassMatchedReference,
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    TrainingSample,
    build_train_loader,
    compute_repeat_factors,
)
from bsgal_train.decision_log import read_decisions
from bsgal_train.derived import file_sha256, scale_statistics
from bsgal_train.detector import (
    best_device,
    build_detector,
    load_backbone_weights,
    load_weights,
    save_detector,
)
from bsgal_train.errors import AnnotationFormatError
from bsgal_train.evaluation import LvisResult
from bsgal_train.memory import available_bytes, check_memory
from bsgal_train.metrics import read_metrics
from bsgal_train.provenance import describe_inputs, save_provenance
from bsgal_train.recipe import DataConfig, Recipe, ScheduleConfig
from bsgal_train.selection import build_selection
from bsgal_train.trainer import Progress, Trainer, build_optimizer
from bsgal_train.validation import validate

__all__ = ["RunResult", "evaluate", "train"]

logger = logging.getLogger(__name__)

# Settings that may differ between the starts of one run: they change no number.
_FREE_SETTINGS = (
    "data.n_workers",
    "schedule.log_every",
    "checkpoint.every",
    "checkpoint.keep",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of a run.

    Attributes:
        folder: its output folder.
        evaluation: on the validation annotations; None where there are none.
        step_s: seconds of a step with its loading; the median over the rows of metrics.
        accepted_share: accepted share of the judged units; None if nothing was judged.
    """

    folder: Path
    evaluation: LvisResult | None
    step_s: float
    accepted_share: float | None


def train(recipe: Recipe, folder: str | Path, *, progress: Progress | None = None) -> RunResult:
    """Train a recipe in `folder`, or go on where an earlier start of it stopped.

    Writes `recipe.json`, `provenance.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`,
    `decisions/`, `detector.safetensors` with `detector.json`, `predictions/` and `results.json`.

    Args:
        recipe: the settings; all of them are checked against the data before the first step.
        folder: made if missing.
        progress: told after every step.

    Raises:
        ValueError: for bad settings, annotations or pool, or a folder of another recipe.
        OSError: if the folder cannot be written.
        TooLittleMemoryError: if gradients and their cache cannot fit.
        DivergedError: if a loss is not finite.
        TrainingInterruptedError: after Ctrl-C, once a checkpoint is written.
    """
    folder = Path(folder)
    own = _own_samples(recipe.schedule)
    data = _DataPaths.of(recipe.data)
    annotations = LvisAnnotations.load(data.train_json, data.image_root)
    validation = data.load_validation()
    if validation is not None:
        _check_same_categories(annotations, validation)
    crop = RandomCrop(
        crop_px=recipe.data.crop_px,
        scale_range=recipe.data.scale_range,
        flip_prob=recipe.data.flip_prob,
    )
    seed = recipe.schedule.seed
    problem = lvis_v1_train_problem(annotations)
    if problem is not None:
        raise AnnotationFormatError(problem)
    sha256 = file_sha256(annotations.path)
    copy_paste = _copy_paste(recipe, annotations, sha256)
    mapper = TrainingMapper(annotations, crop, seed=seed, copy_paste=copy_paste)
    sampler = RepeatFactorSampler(
        compute_repeat_factors(annotations, recipe.data.repeat_threshold), seed
    )
    detector = _initial_detector(recipe, annotations)
    check_memory(recipe, detector, available_bytes())
    pool = None if copy_paste is None else copy_paste.pool
    inputs = describe_inputs(annotations, sha256, validation, pool)
    _prepare_folder(folder, recipe, inputs)

    def batches(start_position: int) -> Iterable[list[TrainingSample]]:
        return build_train_loader(
            annotations,
            mapper,
            sampler,
            recipe.schedule.batch_size,
            recipe.data.n_workers,
            start_position,
            own,
        )

    def evaluate_on_the_way(step: int) -> dict[str, float]:
        assert validation is not None, "only passed on where there are validation annotations"
        predictions = folder / f"predictions-{step:08d}"
        metrics = validate(detector, validation, recipe, predictions).result.metrics["segm"]
        if processes.rank() == 0:
            shutil.rmtree(predictions)
        values = {name: getattr(metrics, name) for name in ("ap", "apr", "apc", "apf")}
        logger.info("step %d: mask %s", step, values)
        return {f"val/{name}": value for name, value in values.items() if value is not None}

    optimizer = build_optimizer(detector, recipe.optimizer)
    reference = ClassMatchedReference(annotations, crop)
    trainer = Trainer(
        recipe=recipe,
        detector=detector,
        optimizer=optimizer,
        selection=build_selection(recipe, detector, reference, optimizer),
        batches=batches,
        folder=folder,
        progress=progress,
        evaluate=evaluate_on_the_way if validation is not None else None,
    )
    trainer.run()
    with trainer.averaged():
        return _finish(folder, recipe, detector, annotations, validation)


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
        folder: where `predictions/` and `results.json` go; None writes nothing.
        progress: told after every batch of images.

    Raises:
        ValueError: for bad annotations or weights, or no validation annotations.
    """
    validation = _DataPaths.of(recipe.data).load_validation()
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
        found = validate(detector, validation, recipe, base / "predictions", progress=progress)
        # The folder goes with the first process's block.
        processes.wait_for_all()
    if folder is not None and processes.rank() == 0:
        _write_json(folder / "results.json", found.to_dict())
    return found.result


@dataclass(frozen=True, kw_only=True, slots=True)
class _DataPaths:
    """Where the annotations and images of a recipe are; makes the built-in set if it is used."""

    train_json: Path
    image_root: Path
    val_json: Path | None
    val_image_root: Path

    @classmethod
    def of(cls, config: DataConfig) -> _DataPaths:
        if not config.train_json:
            with processes.first_before_others():
                builtin = ensure_builtin_dataset(config.builtin_root)
            return cls(
                train_json=builtin.train_json,
                image_root=builtin.image_root,
                val_json=builtin.val_json,
                val_image_root=builtin.image_root,
            )
        return cls(
            train_json=Path(config.train_json),
            image_root=Path(config.image_root),
            val_json=Path(config.val_json) if config.val_json else None,
            val_image_root=Path(config.val_image_root or config.image_root),
        )

    def load_validation(self) -> LvisAnnotations | None:
        if self.val_json is None:
            return None
        return LvisAnnotations.load(self.val_json, self.val_image_root)


def _check_same_categories(training: LvisAnnotations, validation: LvisAnnotations) -> None:
    ids = [[c.category_id for c in split.categories] for split in (training, validation)]
    if ids[0] != ids[1]:
        differing = sorted(set(ids[0]) ^ set(ids[1]))
        raise ValueError(
            f"{training.path} and {validation.path} must define the same categories; "
            f"{len(differing)} ids are in one only, first {differing[:5]}"
        )


def _copy_paste(recipe: Recipe, annotations: LvisAnnotations, sha256: str) -> CopyPaste | None:
    if not recipe.paste.pool:
        return None
    if recipe.selection.mode == "none":
        logger.warning(
            "selection.mode=none pastes nothing: the pool %s is not used", recipe.paste.pool
        )
        return None
    with processes.first_before_others():
        # The first use of a large pool writes its index.
        pool = InstancePool.open(recipe.paste.pool).match(annotations.categories)
    logger.info("pool: %d instances of %d categories", len(pool), len(pool.category_ids))
    sampler = CategoryBalancedSampler(pool, count_range=(0, recipe.paste.max_instances + 1))
    scale = NormalScale(statistics=scale_statistics(annotations.path, sha256))
    return CopyPaste(pool, sampler, scale, on_corrupt="skip")


def _initial_detector(recipe: Recipe, annotations: LvisAnnotations) -> nn.Module:
    config = recipe.detector
    names = [category.name for category in annotations.categories]
    with torch.random.fork_rng(devices=[]):
        # detectron2 and timm draw initial weights from the global generator.
        torch.manual_seed(recipe.schedule.seed)
        detector = build_detector(
            config, len(names), [category.image_count for category in annotations.categories]
        )
    if config.backbone_weights:
        load_backbone_weights(detector, config.backbone_weights)
    if config.init != "random":
        load_weights(detector, config.init, names)
    return detector.to(best_device())


def _own_samples(schedule: ScheduleConfig) -> range:
    """Return which samples of a step are this process's."""
    parts = processes.n_processes() * schedule.n_accumulate
    if schedule.batch_size % parts:
        raise ValueError(
            f"schedule.batch_size={schedule.batch_size} cannot be shared evenly by "
            f"{processes.n_processes()} processes in {schedule.n_accumulate} parts each; it is the "
            f"number of images of all processes together: choose a multiple of {parts}"
        )
    return processes.share(schedule.batch_size)


def _prepare_folder(folder: Path, recipe: Recipe, inputs: dict[str, Any]) -> None:
    """Make a run's folder with its recipe and provenance, or check that it is the same run."""
    with processes.first_before_others():
        if processes.rank() == 0:
            _check_or_save_recipe(folder, recipe)
            save_provenance(folder, inputs)


def _check_or_save_recipe(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    if path.is_file():
        earlier, now = (_deciding(one) for one in (Recipe.load(path), recipe))
        differing = sorted(key for key in now if now[key] != earlier[key])
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings: "
                + ", ".join(f"{key}={earlier[key]!r} (now {now[key]!r})" for key in differing)
                + "; choose another output folder, or delete this one"
            )
    recipe.save(path)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that change results, by dotted key."""
    return {
        f"{part}.{name}": value
        for part, named in recipe.to_dict().items()
        for name, value in named.items()
        if f"{part}.{name}" not in _FREE_SETTINGS
    }


def _finish(
    folder: Path,
    recipe: Recipe,
    detector: nn.Module,
    annotations: LvisAnnotations,
    validation: LvisAnnotations | None,
) -> RunResult:
    """Write the trained detector, evaluate it, and sum the run up."""
    is_first = processes.rank() == 0
    if is_first:
        save_detector(folder, detector, recipe.detector, [c.name for c in annotations.categories])
    found = None
    if validation is not None:
        found = validate(detector, validation, recipe, folder / "predictions")
    rows = read_metrics(folder / "metrics.jsonl")
    step_s = statistics.median(row["step_s"] for row in rows if "step_s" in row)
    shares = read_decisions(folder / "decisions").column("accepted_share").to_pylist()
    accepted_share = shares[-1] if shares else None
    summary = {
        "n_steps": recipe.schedule.n_steps,
        "step_s": step_s,
        "accepted_share": accepted_share,
        **({"evaluation": None} if found is None else found.to_dict()),
    }
    if is_first:
        _write_json(folder / "results.json", summary)
    return RunResult(
        folder=folder,
        evaluation=None if found is None else found.result,
        step_s=step_s,
        accepted_share=accepted_share,
    )


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
    temporary.replace(path)
