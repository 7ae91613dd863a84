"""Settings of one training run: frozen dataclasses, overridden by dotted keys."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bsgal_train.recipe.selection import SelectionConfig
from bsgal_train.recipe.values import checked, declared, parse, require
from bsgal_train.run_folder.layout import write_json

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DetectorConfig",
    "OptimizerConfig",
    "PasteConfig",
    "Recipe",
    "ScheduleConfig",
]

Precision = Literal["fp32", "bf16", "fp16"]
Architecture = Literal["mask_rcnn", "centernet2"]
BackboneNorm = Literal["group", "frozen", "own"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which annotated images are trained on, and how a crop is made of each.

    Attributes:
        builtin_root: folder of the built-in set, made on first use where `train_json` is empty.
        train_json: LVIS v1 annotation file of the training images; empty means the built-in set.
        val_json: LVIS v1 annotation file for evaluation; empty means the built-in set, or no
            evaluation where `train_json` is given.
        image_root: folder that the images' file names are relative to.
        val_image_root: the same for `val_json`; empty means `image_root`.
        crop_px: side of the square training crop, in pixels.
        scale_range: range of the random resize before the crop, relative to `crop_px`.
        flip_prob: probability of a horizontal flip.
        repeat_threshold: share of images below which a category's images are repeated
            (repeat-factor sampling); 0 switches it off.
        n_workers: loader processes; 0 loads in the training process. Changes no sample.
    """

    builtin_root: str = "bsgal-builtin"
    train_json: str = ""
    val_json: str = ""
    image_root: str = ""
    val_image_root: str = ""
    crop_px: int = 160
    scale_range: tuple[float, float] = (0.8, 1.25)
    flip_prob: float = 0.5
    repeat_threshold: float = 0.001
    n_workers: int = 0

    def __post_init__(self) -> None:
        require(self.crop_px >= 32, f"data.crop_px must be at least 32, got {self.crop_px}")
        low, high = self.scale_range
        require(0 < low <= high, f"data.scale_range must be 0 < low <= high, got {(low, high)}")
        require(0 <= self.flip_prob <= 1, f"data.flip_prob must be in [0, 1]: {self.flip_prob}")
        require(0 <= self.repeat_threshold <= 1, "data.repeat_threshold must be in [0, 1]")
        require(self.n_workers >= 0, f"data.n_workers must be >= 0, got {self.n_workers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Shape of the detector.

    Attributes:
        architecture: `mask_rcnn` (anchors, one box stage), or `centernet2` (class-agnostic
            CenterNet proposals, three box stages).
        backbone: name of a timm model that can return feature maps of strides 4 to 32.
        backbone_channels: channels of the four stages of a timm ResNet; empty keeps timm's own.
        backbone_weights: weights to start the backbone from: a file (.safetensors, or a .pth of
            tensors), or `hub:` and the name of a timm model on the Hugging Face hub, which is
            fetched when a run starts; empty starts from random weights.
        backbone_norm: `group` replaces batch by group normalisation, to train from random
            weights; `frozen` keeps the statistics of `backbone_weights`; `own` leaves timm's
            layers, for backbones with layer normalisation.
        drop_path: probability that a block of the backbone is skipped in training; none is where
            `selection.mode` scores the pass that is trained on (`batch`, `image`, `instance`,
            `oracle`; `ModeSpec.scores_the_training_pass`).
        fpn_channels: channels of the feature pyramid; a multiple of 32 (group normalisation).
        head_channels: channels of the heads' convolutions; a multiple of 32.
        head_norm: normalisation of the pyramid's, box head's and mask head's convolutions.
        n_tower_convs: convolutions of the CenterNet tower.
        n_box_convs: convolutions of a box head.
        n_box_fcs: fully connected layers of a box head, after them.
        n_mask_convs: convolutions of the mask head before its upsampling.
        box_features: width of the fully connected layers before the class logits.
        anchor_sizes_px: anchor side for each pyramid level of strides 4, 8, 16, 32.
        anchors_per_image: anchors that enter the proposal loss.
        rois_per_image: proposals that enter the box and class losses.
        roi_samples: samples per side of a bin, in the box and the mask pooler; 0 adapts to the
            size of the region.
        positive_fraction: upper limit of the share of foreground among them.
        proposals_per_image: proposals kept after non-maximum suppression; twice as many enter it
            (on each level).
        test_proposals_per_image: the same at prediction; 0 is as in training.
        test_proposals_before_nms: how many enter it there; 0 is twice as many.
        class_agnostic_masks: predict one mask per proposal rather than one per class.
        prior_prob: probability that an untrained detector gives each class of a proposal.
        federated_classes: classes that take part in a batch's classification loss; 0 is all.
        score_threshold: detections below it are not reported.
        nms_threshold: overlap above which the lower of two detections of a class is dropped.
        detections_per_image: upper limit, LVIS allows 300.
        image_px: longer side of an image at prediction; 0 keeps the image's size.
        image_short_px: shorter side of an image at prediction; `image_px` is then the limit of the
            longer one. 0 leaves it free.
        init: `random`, `baseline` (the detector shipped with the package), or the output folder of
            a run, whose detector is taken.
        precision: `bf16` or `fp16` runs convolutions and linear layers in it (losses stay in
            fp32); faster on processors with units for it, bit-identical only on the same machine.
    """

    architecture: Architecture = "mask_rcnn"
    backbone: str = "resnet18"
    backbone_channels: tuple[int, ...] = (32, 64, 128, 256)
    backbone_weights: str = ""
    backbone_norm: BackboneNorm = "group"
    drop_path: float = 0.0
    fpn_channels: int = 64
    head_channels: int = 64
    head_norm: Literal["group", "none"] = "group"
    n_tower_convs: int = 2
    n_box_convs: int = 1
    n_box_fcs: int = 1
    n_mask_convs: int = 2
    box_features: int = 256
    anchor_sizes_px: tuple[int, ...] = (16, 32, 64, 128)
    anchors_per_image: int = 64
    rois_per_image: int = 64
    roi_samples: tuple[int, int] = (1, 2)
    positive_fraction: float = 0.25
    proposals_per_image: int = 200
    test_proposals_per_image: int = 0
    test_proposals_before_nms: int = 0
    class_agnostic_masks: bool = True
    prior_prob: float = 0.01
    federated_classes: int = 0
    score_threshold: float = 0.01
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    image_px: int = 0
    image_short_px: int = 0
    init: str = "random"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name in ("fpn_channels", "head_channels"):
            value = getattr(self, name)
            require(
                value > 0 and value % 32 == 0,
                f"detector.{name} must be a positive multiple of 32, got {value}",
            )
        require(len(self.anchor_sizes_px) == 4, "detector.anchor_sizes_px needs four sizes")
        require(
            0 < self.prior_prob < 1, f"detector.prior_prob must be in (0, 1): {self.prior_prob}"
        )
        require(0 < self.positive_fraction <= 1, "detector.positive_fraction must be in (0, 1]")
        require(0 <= self.drop_path < 1, f"detector.drop_path must be in [0, 1): {self.drop_path}")
        require(self.n_box_convs + self.n_box_fcs > 0, "a box head needs a layer")
        for name in ("federated_classes", "image_px", "image_short_px"):
            require(getattr(self, name) >= 0, f"detector.{name} must be at least 0")
        require(
            self.backbone_norm != "frozen" or bool(self.backbone_weights) or self.init != "random",
            "detector.backbone_norm=frozen keeps the statistics of trained weights: set "
            "detector.backbone_weights or detector.init, or detector.backbone_norm=group to train "
            "without",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW on every parameter.

    Attributes:
        lr: peak learning rate.
        lr_batch_size: batch size that `lr` is meant for. With another one, the rate is multiplied
            by the root of their ratio, as is usual for Adam, and the log says so; 0 takes `lr` as
            it is.
        weight_decay: decoupled weight decay of matrices and kernels.
        decay_all: norms and biases decay too.
        clip_norm: limit of the gradient.
        clip_type: `norm` scales all gradients down together where their norm is above the limit,
            `value` cuts each of their entries to it.
        ema_decay: weight of the old moving average of the weights, which is what is evaluated and
            stored at the end; 0 keeps none.
        max_skipped_steps: steps of a run that are left out where a loss or a gradient is not
            finite, each with its record in `nonfinite/`; one more ends the run. A gradient that
            overflows the loss scale of fp16 is no such step: the scale is halved.
    """

    lr: float = 1e-3
    lr_batch_size: int = 0
    weight_decay: float = 0.05
    decay_all: bool = False
    clip_norm: float = 1.0
    clip_type: Literal["norm", "value"] = "norm"
    ema_decay: float = 0.0
    max_skipped_steps: int = 0

    def __post_init__(self) -> None:
        require(self.max_skipped_steps >= 0, "optimizer.max_skipped_steps must be >= 0")
        require(self.lr > 0, f"optimizer.lr must be positive, got {self.lr}")
        require(self.weight_decay >= 0, "optimizer.weight_decay must be >= 0")
        require(self.clip_norm > 0, f"optimizer.clip_norm must be positive, got {self.clip_norm}")
        require(self.lr_batch_size >= 0, "optimizer.lr_batch_size must be >= 0")
        require(
            0 <= self.ema_decay < 1, f"optimizer.ema_decay must be in [0, 1), got {self.ema_decay}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Length of the run: linear warm-up, then a cosine to `final_lr_factor`.

    Attributes:
        n_steps: optimizer steps.
        batch_size: images per step, of all processes together.
        n_accumulate: parts that a step's images are run in, one after the other, to save memory;
            divides `batch_size`. Every part is judged by itself, as in a run of as many processes
            without a joint verdict.
        warmup_steps: steps until the peak learning rate is reached.
        final_lr_factor: learning rate at the end, relative to the peak.
        seed: seed of everything random in the run.
        log_every: steps between two rows of metrics.
        eval_every: steps between evaluations; 0 evaluates at the end only.
    """

    n_steps: int = 1000
    batch_size: int = 8
    n_accumulate: int = 1
    warmup_steps: int = 100
    final_lr_factor: float = 0.01
    seed: int = 0
    log_every: int = 20
    eval_every: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "n_accumulate", "log_every"):
            value = getattr(self, name)
            require(value >= 1, f"schedule.{name} must be at least 1, got {value}")
        require(
            self.batch_size % self.n_accumulate == 0,
            f"schedule.n_accumulate must divide schedule.batch_size, got {self.n_accumulate} and "
            f"{self.batch_size}",
        )
        for name in ("warmup_steps", "eval_every", "seed"):
            value = getattr(self, name)
            require(value >= 0, f"schedule.{name} must be at least 0, got {value}")
        require(0 <= self.final_lr_factor <= 1, "schedule.final_lr_factor must be in [0, 1]")

    @property
    def n_judgements(self) -> int:
        """How often a selection mode is asked in the whole run."""
        return self.n_steps * self.n_accumulate


@dataclass(frozen=True, kw_only=True, slots=True)
class PasteConfig:
    """What is pasted into the training crops.

    Attributes:
        pool: folder of the instance pool; empty pastes nothing.
        max_instances: upper limit of the uniform count of pasted instances per image; the
            released recipe has 19, in crops of 640 px.
    """

    pool: str = ""
    max_instances: int = 4

    def __post_init__(self) -> None:
        require(self.max_instances >= 1, "paste.max_instances must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Attributes:
        every: steps between checkpoints.
        keep: number of newest checkpoints kept.
    """

    every: int = 250
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 1, f"checkpoint.every must be at least 1, got {self.every}")
        require(self.keep >= 1, f"checkpoint.keep must be at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the result of a run.

    Example:
        >>> recipe = Recipe().override("paste.pool=pool", "selection.mode=paper")
        >>> recipe.selection.mode, recipe.selection.effective_decay
        ('paper', 0.1)
    """

    data: DataConfig = field(default_factory=DataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    paste: PasteConfig = field(default_factory=PasteConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.selection.spec.pastes and not self.paste.pool:
            raise ValueError(
                f"selection.mode={self.selection.mode} needs generated instances: "
                "set paste.pool to an instance pool, or selection.mode=none"
            )

    def override(self, *assignments: str) -> Recipe:
        """Return a copy with `part.key=value` assignments applied together.

        Args:
            assignments: such as `"schedule.n_steps=50"`; values are read as JSON where the key
                is not a string, so `data.scale_range=[0.8,1.25]` and `schedule.seed=3` work.

        Raises:
            ValueError: for an unknown key (the nearest known one is named), a value of the wrong
                type, or a combination that makes no sense.
        """
        changes: dict[str, dict[str, Any]] = {}
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise ValueError(f"`{assignment}` is not of the form part.key=value")
            part, name, annotation = declared(self, key.strip())
            changes.setdefault(part, {})[name] = parse(text.strip(), annotation, key.strip())
        parts = {
            part: dataclasses.replace(getattr(self, part), **values)
            for part, values in changes.items()
        }
        return dataclasses.replace(self, **parts)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the recipe as nested plain dictionaries, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Recipe:
        """Rebuild a recipe from `to_dict`'s form, also after a trip through JSON.

        A stored setting of the selection that its mode has no use for is left out, with a line in
        the log: runs were begun before such settings were refused.
        """
        empty = cls()
        parts: dict[str, dict[str, Any]] = {}
        for part, named in values.items():
            if not isinstance(named, dict):
                raise ValueError(f"recipe part `{part}` must be an object, got {named!r}")
            for name, value in named.items():
                key = f"{part}.{name}"
                parts.setdefault(part, {})[name] = checked(value, declared(empty, key)[2], key)
        selection = SelectionConfig.of_stored(parts.pop("selection", {}))
        made = {part: type(getattr(empty, part))(**named) for part, named in parts.items()}
        return cls(selection=selection, **made)

    def save(self, path: Path) -> None:
        """Write the resolved recipe as JSON, atomically."""
        write_json(path, self.to_dict(), indent=2)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read what `save` wrote."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a saved recipe: {error}") from None
        return cls.from_dict(values)
