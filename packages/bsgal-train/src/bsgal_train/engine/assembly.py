"""From a recipe to the steps of its run: data, pool, detector, optimizer and selection.

The pool's categories are matched to the data's in `data.pool`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, NormalScale
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.derived import file_sha256, scale_statistics
from bsgal_train.annotations.findings import lvis_v1_train_problem
from bsgal_train.data import (
    ClassMatchedReference,
    DrawnAhead,
    DrawTable,
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    TrainingSample,
    build_train_loader,
    compute_repeat_factors,
)
from bsgal_train.data.pool import open_pool
from bsgal_train.data.skipped_files import SkippedFiles
from bsgal_train.detector import (
    best_device,
    build_detector,
    load_backbone_weights,
    load_weights,
)
from bsgal_train.engine.memory import available_bytes, check_memory
from bsgal_train.engine.optimizer import build_optimizer
from bsgal_train.engine.steering import SteeredDraws, Steering, evidence_steering
from bsgal_train.engine.step import TrainingSteps, step_seed
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.errors import AnnotationFormatError
from bsgal_train.processes import group as processes
from bsgal_train.recipe import DataConfig, Recipe, ScheduleConfig
from bsgal_train.selection import build_selection

__all__ = ["Assembly", "assemble", "training_crop"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What a run's steps are taken with.

    Attributes:
        annotations: of the training images.
        annotations_sha256: of their file.
        pool: the matched pool, if instances are pasted.
        detector: on the device it is trained on.
        steps: before the first one.
        batches: called with a start position, yields this process's samples of step after step.
    """

    annotations: LvisAnnotations
    annotations_sha256: str
    pool: InstancePool | None
    detector: nn.Module
    steps: TrainingSteps
    batches: Callable[[int], Iterable[list[TrainingSample]]]


def assemble(
    recipe: Recipe,
    annotations: LvisAnnotations,
    *,
    initial_weights: bool = True,
    steering: Steering | None = None,
) -> Assembly:
    """Make what a recipe's steps are taken with; everything is checked, nothing is written.

    Args:
        recipe: of the run.
        annotations: of the training images.
        initial_weights: load what the recipe starts from; not needed where a checkpoint follows.
        steering: weighs the pool's instances as training goes on; None leaves it to the mode: by
            evidence, where it has some and `selection.steer` is on, else all alike.

    Raises:
        ValueError: for bad settings, annotations, pool or weights of its instances.
        TooLittleMemoryError: if gradients and their cache cannot fit.
    """
    own = _own_samples(recipe.schedule)
    problem = lvis_v1_train_problem(annotations)
    if problem is not None:
        raise AnnotationFormatError(problem)
    crop = training_crop(recipe.data)
    seed = recipe.schedule.seed
    skipped = SkippedFiles()
    sha256 = file_sha256(annotations.path)
    pool = _matched_pool(recipe, annotations)
    detector = _drawn_detector(recipe, annotations)
    if initial_weights:
        _load_initial_weights(detector, recipe, annotations)
    detector.to(best_device())
    check_memory(recipe, detector, available_bytes())
    optimizer = build_optimizer(detector, recipe.optimizer)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, recipe.detector.precision)
    reference = ClassMatchedReference(annotations, crop, skipped, recipe.data.n_workers)
    selection = build_selection(recipe, detector, reference, update)
    if steering is None and pool is not None:
        steering = evidence_steering(recipe.selection, selection)
    draws = None if steering is None else _steered_draws(recipe, pool, steering)
    table = None if draws is None else draws.table
    mapper = TrainingMapper(
        annotations,
        crop,
        seed=seed,
        copy_paste=None if pool is None else _copy_paste(recipe, pool, annotations, sha256, table),
        draw_table=table,
    )
    sampler = RepeatFactorSampler(
        compute_repeat_factors(annotations, recipe.data.repeat_threshold), seed
    )
    ahead = _drawn_ahead(reference, recipe)

    def batches(start_position: int) -> Iterable[list[TrainingSample]]:
        return build_train_loader(
            annotations,
            mapper,
            sampler,
            recipe.schedule.batch_size,
            recipe.data.n_workers,
            start_position,
            own,
            skipped,
            ahead,
        )

    return Assembly(
        annotations=annotations,
        annotations_sha256=sha256,
        pool=pool,
        detector=detector,
        steps=TrainingSteps(recipe, detector, update, selection, skipped, draws),
        batches=batches,
    )


def training_crop(config: DataConfig) -> RandomCrop:
    """Return how training images are cropped."""
    return RandomCrop(
        crop_px=config.crop_px, scale_range=config.scale_range, flip_prob=config.flip_prob
    )


def _drawn_ahead(reference: ClassMatchedReference, recipe: Recipe) -> DrawnAhead | None:
    """Return what gives samples the real images that the mode asks for."""
    every = recipe.selection.reference_every
    if not every:
        return None
    return DrawnAhead(
        draws=reference.draws,
        seed_of_step=partial(step_seed, recipe.schedule.seed),
        batch_size=recipe.schedule.batch_size,
        every=every,
    )


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


def _matched_pool(recipe: Recipe, annotations: LvisAnnotations) -> InstancePool | None:
    if not recipe.paste.pool:
        return None
    if not recipe.selection.spec.pastes:
        logger.warning(
            "selection.mode=%s pastes nothing: the pool %s is not used",
            recipe.selection.mode,
            recipe.paste.pool,
        )
        return None
    return open_pool(recipe.paste.pool, annotations)


def _steered_draws(recipe: Recipe, pool: InstancePool | None, steering: Steering) -> SteeredDraws:
    if pool is None:
        raise ValueError(
            "`steering` weighs the instances of a pool, and this run pastes none; set paste.pool "
            "and a selection.mode that pastes"
        )
    # As PyTorch loads ahead.
    ahead = 2 * recipe.data.n_workers
    if steering.publish_every < ahead:
        logger.warning(
            "loader processes work up to %d steps ahead and will wait for draw weights that are "
            "published every %d steps",
            ahead,
            steering.publish_every,
        )
    return SteeredDraws(pool, steering, recipe.schedule.batch_size)


def _copy_paste(
    recipe: Recipe,
    pool: InstancePool,
    annotations: LvisAnnotations,
    sha256: str,
    table: DrawTable | None,
) -> CopyPaste:
    sampler = CategoryBalancedSampler(
        pool,
        count_range=(0, recipe.paste.max_instances + 1),
        instance_weights=None if table is None else table.current,
    )
    scale = NormalScale(statistics=scale_statistics(annotations.path, sha256))
    return CopyPaste(pool, sampler, scale, on_corrupt="skip")


def _drawn_detector(recipe: Recipe, annotations: LvisAnnotations) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        # detectron2 and timm draw initial weights from the global generator.
        torch.manual_seed(recipe.schedule.seed)
        return build_detector(
            recipe.detector,
            len(annotations.categories),
            [category.image_count for category in annotations.categories],
        )


def _load_initial_weights(
    detector: nn.Module, recipe: Recipe, annotations: LvisAnnotations
) -> None:
    config = recipe.detector
    if config.backbone_weights:
        load_backbone_weights(detector, config.backbone_weights)
    if config.init != "random":
        load_weights(detector, config.init, [category.name for category in annotations.categories])
