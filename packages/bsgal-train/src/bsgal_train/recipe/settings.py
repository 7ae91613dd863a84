"""Settings of one training run: frozen dataclasses, overridden by dotted keys."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DetectorConfig",
    "OptimizerConfig",
    "PasteConfig",
    "Recipe",
    "ScheduleConfig",
    "SelectionConfig",
]

Precision = Literal["fp32", "bf16", "fp16"]
Architecture = Literal["mask_rcnn", "centernet2"]
BackboneNorm = Literal["group", "frozen", "own"]
SelectionMode = Literal[
    "none", "paste_all", "paste_random", "paper", "batch", "image", "instance", "oracle"
]
ScoreForm = Literal["cosine", "dot", "step"]
LossKind = Literal["cls", "box", "mask"]

# Losses that count where a recipe does not say: of the class, which is the paper's choice too, and
# all that a unit can be wrong in.
_CLASS_LOSS: tuple[LossKind, ...] = ("cls",)
_ALL_LOSSES: tuple[LossKind, ...] = ("cls", "box", "mask")


_BY_GROUP = ("threshold_by_group", "kept_share_by_group", "kept_share_end_by_group")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
        _require(self.crop_px >= 32, f"data.crop_px must be at least 32, got {self.crop_px}")
        low, high = self.scale_range
        _require(0 < low <= high, f"data.scale_range must be 0 < low <= high, got {(low, high)}")
        _require(0 <= self.flip_prob <= 1, f"data.flip_prob must be in [0, 1]: {self.flip_prob}")
        _require(0 <= self.repeat_threshold <= 1, "data.repeat_threshold must be in [0, 1]")
        _require(self.n_workers >= 0, f"data.n_workers must be >= 0, got {self.n_workers}")


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
            `oracle`).
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
            _require(
                value > 0 and value % 32 == 0,
                f"detector.{name} must be a positive multiple of 32, got {value}",
            )
        _require(len(self.anchor_sizes_px) == 4, "detector.anchor_sizes_px needs four sizes")
        _require(
            0 < self.prior_prob < 1, f"detector.prior_prob must be in (0, 1): {self.prior_prob}"
        )
        _require(0 < self.positive_fraction <= 1, "detector.positive_fraction must be in (0, 1]")
        _require(0 <= self.drop_path < 1, f"detector.drop_path must be in [0, 1): {self.drop_path}")
        _require(self.n_box_convs + self.n_box_fcs > 0, "a box head needs a layer")
        for name in ("federated_classes", "image_px", "image_short_px"):
            _require(getattr(self, name) >= 0, f"detector.{name} must be at least 0")
        _require(
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
        _require(self.max_skipped_steps >= 0, "optimizer.max_skipped_steps must be >= 0")
        _require(self.lr > 0, f"optimizer.lr must be positive, got {self.lr}")
        _require(self.weight_decay >= 0, "optimizer.weight_decay must be >= 0")
        _require(self.clip_norm > 0, f"optimizer.clip_norm must be positive, got {self.clip_norm}")
        _require(self.lr_batch_size >= 0, "optimizer.lr_batch_size must be >= 0")
        _require(
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
            _require(value >= 1, f"schedule.{name} must be at least 1, got {value}")
        _require(
            self.batch_size % self.n_accumulate == 0,
            f"schedule.n_accumulate must divide schedule.batch_size, got {self.n_accumulate} and "
            f"{self.batch_size}",
        )
        for name in ("warmup_steps", "eval_every", "seed"):
            value = getattr(self, name)
            _require(value >= 0, f"schedule.{name} must be at least 0, got {value}")
        _require(0 <= self.final_lr_factor <= 1, "schedule.final_lr_factor must be in [0, 1]")

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
        _require(self.max_instances >= 1, "paste.max_instances must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Which pasted instances are trained on.

    Settings of another mode than the chosen one have no effect. Where a type is "... | None", None
    (written `null` on the command line) leaves the choice to the mode.

    Attributes:
        mode: `none` never pastes; `paste_all` trains on everything; `paste_random` accepts
            `kept_share` by lot; `paper`, `batch`, `image` and `instance` compare gradients, once
            per batch, image or instance; `oracle` measures the loss difference of every instance.
        reference: what real data an instance or image is compared with: `in_batch`, the real
            objects of the step's own images; `class_matched`, real images of the pasted
            categories, every `refresh_every` steps; `hybrid`, both. `own_class` (`instance` only)
            compares each instance with real objects of its own class, on its class's row of the
            classifier: those of the step's images, after `images_per_class` images of every class
            before the first step. None means `own_class` for cosines of `instance`, else
            `in_batch`. `paper` and `batch` are always class-matched.
        form: `cosine`; `dot`, in loss units per unit learning rate; `step`, in loss units, the
            predicted effect on the optimizer's next step.
        losses: losses of the region heads that count, of `cls`, `box` and `mask`; empty means
            `cls` for `paper`, `batch` and `own_class`, else all three.
        layers: layers of the region heads whose gradients are compared by `batch`, `image` and
            `instance`: `last`, those that give the logits, boxes and masks; or all of the `heads`,
            at the price of a backward pass through them.
        refresh_every: steps between two class-matched references (`paper` takes one each step).
        images_per_class: real images of every class that `own_class` visits before the first step.
        decay: weight of the old gradient cache at each update; None means 0.1 (released with the
            paper) for `paper` and `batch`, else 0.9.
        rowwise: classifier rows keep their memory in steps without their class.
        cache_dtype: type of the cache; `bf16` halves it, for a decay of at most 0.9.
        policy: `fixed` accepts from `threshold` on; `quantile` accepts the best `kept_share` of
            the last `window` contributions; `schedule` moves that share linearly over the run;
            `like_real` (with `own_class`) accepts what scores as `real_kept_share` of real objects
            do. None means `like_real` with `own_class` where no threshold is set, else `fixed`.
        threshold: contribution that is needed (`fixed`), or needed until there is a window. None
            means -0.05 (released with the paper) for cosines, and 0 for forms in loss units.
        kept_share: share to accept; at the first step of a `schedule`.
        kept_share_end: share to accept at the last step of a `schedule`.
        real_kept_share: share of real objects that the threshold of `like_real` would accept.
        window: contributions that a quantile is taken of.
        per_group: keep one window per frequency group; implied by the settings by group. Only
            where single instances are judged.
        threshold_by_group: thresholds of rare, common and frequent categories; empty means
            `threshold`.
        kept_share_by_group: the same for `kept_share`.
        kept_share_end_by_group: the same for `kept_share_end`.
        granularity: what `paste_random` draws a lot for.
        oracle_step: `oracle` takes the step with the whole batch, with and without the instance
            (`in_batch`), or with the instance `alone`.
        nothing_to_judge: `paper` only: `no_evidence` trains on a batch without a pasted proposal
            and enters it in no window; `zero` scores it 0, as the released code does.
        reference_classes: `paper` only: `all` takes every class of the reference loss, as the
            released code does; `federated` masks classes there as in training.
    """

    mode: SelectionMode = "none"
    reference: Literal["in_batch", "class_matched", "hybrid", "own_class"] | None = None
    form: ScoreForm = "cosine"
    losses: tuple[LossKind, ...] = ()
    layers: Literal["last", "heads"] = "last"
    refresh_every: int = 16
    images_per_class: int = 4
    decay: float | None = None
    rowwise: bool = False
    cache_dtype: Literal["fp32", "bf16"] = "fp32"
    policy: Literal["fixed", "quantile", "schedule", "like_real"] | None = None
    threshold: float | None = None
    kept_share: float = 0.5
    kept_share_end: float = 0.5
    real_kept_share: float = 0.99
    window: int = 1000
    per_group: bool = False
    threshold_by_group: tuple[float, ...] = ()
    kept_share_by_group: tuple[float, ...] = ()
    kept_share_end_by_group: tuple[float, ...] = ()
    granularity: Literal["batch", "image", "instance"] = "instance"
    oracle_step: Literal["in_batch", "alone"] = "in_batch"
    nothing_to_judge: Literal["no_evidence", "zero"] = "no_evidence"
    reference_classes: Literal["all", "federated"] = "all"

    def __post_init__(self) -> None:
        decay, threshold = self.effective_decay, self.effective_threshold
        _require(0 <= decay < 1, f"selection.decay must be in [0, 1), got {decay}")
        _require(
            self.cache_dtype == "fp32" or decay <= 0.9,
            f"selection.cache_dtype=bf16 needs a selection.decay of at most 0.9, got {decay}: the "
            "updates of a longer memory are lost in 8 bits",
        )
        _require(
            self.form != "cosine" or self.mode == "oracle" or -1 <= threshold <= 1,
            f"selection.threshold is a cosine, in [-1, 1], got {threshold}",
        )
        _require(math.isfinite(threshold), "selection.threshold must be finite")
        _require(self.refresh_every >= 1, "selection.refresh_every must be at least 1")
        _require(self.window >= 1, "selection.window must be at least 1")
        _require(
            len(set(self.losses)) == len(self.losses),
            f"selection.losses names a loss twice: {self.losses}",
        )
        _require(self.images_per_class >= 0, "selection.images_per_class must be >= 0")
        _require(
            self.effective_reference != "own_class" or self._is_own_class_possible,
            "selection.reference=own_class compares cosines on the last class layer: it needs "
            "selection.mode=instance, form=cosine, layers=last, losses=[] or [cls], rowwise=false "
            "and cache_dtype=fp32; with other settings choose selection.reference=in_batch",
        )
        _require(
            self.policy != "like_real" or self.effective_reference == "own_class",
            "selection.policy=like_real needs scores of real objects, which there are with "
            "selection.reference=own_class only",
        )
        shares = (self.kept_share, self.kept_share_end, self.real_kept_share)
        for share in (*shares, *self.kept_share_by_group, *self.kept_share_end_by_group):
            _require(0 <= share <= 1, f"selection.kept_share... must be in [0, 1], got {share}")
        for name in _BY_GROUP:
            n_values = len(getattr(self, name))
            _require(
                n_values in (0, 3),
                f"selection.{name} needs three values, for r, c and f, got {n_values}",
            )
        _require(
            not self.is_per_group or self.mode in ("instance", "oracle"),
            f"selection.mode={self.mode} judges several categories at once: settings by frequency "
            "group need selection.mode=instance",
        )

    @property
    def effective_reference(self) -> str:
        """The reference, resolved for mode and form."""
        if self.reference is not None:
            return self.reference
        return "own_class" if self.mode == "instance" and self.form == "cosine" else "in_batch"

    @property
    def effective_policy(self) -> str:
        """The policy, resolved for the reference."""
        if self.policy is not None:
            return self.policy
        is_set = self.threshold is not None or bool(self.threshold_by_group)
        return "like_real" if self.effective_reference == "own_class" and not is_set else "fixed"

    @property
    def effective_losses(self) -> tuple[LossKind, ...]:
        """The losses that count, resolved for the mode."""
        if self.losses:
            return self.losses
        if self.mode in ("paper", "batch") or self.effective_reference == "own_class":
            return _CLASS_LOSS
        return _ALL_LOSSES

    @property
    def effective_decay(self) -> float:
        """The decay, resolved for the mode."""
        if self.decay is not None:
            return self.decay
        return 0.1 if self.mode in ("paper", "batch") else 0.9

    @property
    def effective_threshold(self) -> float:
        """The threshold, resolved for form and mode."""
        if self.threshold is not None:
            return self.threshold
        return -0.05 if self.form == "cosine" and self.mode != "oracle" else 0.0

    @property
    def _is_own_class_possible(self) -> bool:
        return (
            self.mode == "instance"
            and self.form == "cosine"
            and self.layers == "last"
            and self.losses in ((), ("cls",))
            and not self.rowwise
            and self.cache_dtype == "fp32"
        )

    @property
    def is_per_group(self) -> bool:
        """Whether frequency groups are judged apart."""
        return self.per_group or any(getattr(self, name) for name in _BY_GROUP)


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
        _require(self.every >= 1, f"checkpoint.every must be at least 1, got {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep must be at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the result of a run.

    Example:
        >>> recipe = Recipe().override("selection.mode=paper", "schedule.n_steps=50")
        >>> recipe.selection.mode, recipe.schedule.n_steps
        ('paper', 50)
    """

    data: DataConfig = field(default_factory=DataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    paste: PasteConfig = field(default_factory=PasteConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.selection.mode != "none" and not self.paste.pool:
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
            part, name, annotation = self._field(key.strip())
            changes.setdefault(part, {})[name] = _parse(text.strip(), annotation, key.strip())
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
        """Rebuild a recipe from `to_dict`'s form, also after a trip through JSON."""
        empty = cls()
        parts: dict[str, dict[str, Any]] = {}
        for part, named in values.items():
            if not isinstance(named, dict):
                raise ValueError(f"recipe part `{part}` must be an object, got {named!r}")
            for name, value in named.items():
                key = f"{part}.{name}"
                parts.setdefault(part, {})[name] = _checked(value, empty._field(key)[2], key)
        return cls(**{part: type(getattr(empty, part))(**named) for part, named in parts.items()})

    def save(self, path: Path) -> None:
        """Write the resolved recipe as JSON, atomically."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read what `save` wrote."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a saved recipe: {error}") from None
        return cls.from_dict(values)

    def _field(self, key: str) -> tuple[str, str, Any]:
        """Return part, name and declared type of a dotted key, or raise with the nearest one."""
        known = {
            f"{part.name}.{name}": (part.name, name, annotation)
            for part in dataclasses.fields(self)
            for name, annotation in typing.get_type_hints(type(getattr(self, part.name))).items()
        }
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown recipe key `{key}`; the nearest is `{nearest[0]}`")
        return known[key]


def _parse(text: str, annotation: Any, key: str) -> Any:
    inner = _unless_none(annotation)
    if inner is not None:
        return None if text == "null" else _parse(text, inner, key)
    if annotation is str or typing.get_origin(annotation) is Literal:
        return _checked(text, annotation, key)
    try:
        value = json.loads(text.lower() if annotation is bool else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"recipe key `{key}`: cannot read `{text}` ({error})") from None
    return _checked(value, annotation, key)


def _checked(value: Any, annotation: Any, key: str) -> Any:
    """Return `value` in the declared type, or raise naming the key and what it takes."""
    inner = _unless_none(annotation)
    if inner is not None:
        return None if value is None else _checked(value, inner, key)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ValueError(f"recipe key `{key}` must be one of {', '.join(choices)}: `{value}`")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        item, *rest = typing.get_args(annotation)
        if rest and rest[0] is not Ellipsis and len(value) != len(rest) + 1:
            raise ValueError(f"recipe key `{key}` needs {len(rest) + 1} values, got {value}")
        return tuple(_checked(element, item, key) for element in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, but `schedule.n_steps=true` is a mistake.
    if origin is None and type(value) is annotation:
        return value
    raise ValueError(
        f"recipe key `{key}` takes {getattr(annotation, '__name__', annotation)}, got {value!r}"
    )


def _unless_none(annotation: Any) -> Any:
    """Return X of `X | None`; None for a type that does not take None."""
    # `Literal[...] | None` is of another kind than `float | None` before Python 3.14.
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return None
    (inner,) = (one for one in typing.get_args(annotation) if one is not types.NoneType)
    return inner
