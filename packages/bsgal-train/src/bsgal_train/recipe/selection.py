"""Settings of the selection: which pasted instances a run trains on."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bsgal_train.recipe.modes import (
    MODES,
    EvidenceSource,
    Granularity,
    LossKind,
    ModeSpec,
    PolicyName,
    Reference,
    ScoreSpec,
)
from bsgal_train.recipe.values import require

__all__ = ["ScoreForm", "SelectionConfig", "UnusedSettingsError"]

logger = logging.getLogger(__name__)

ScoreForm = Literal["cosine", "dot", "step"]

_BY_GROUP = ("threshold_by_group", "kept_share_by_group", "kept_share_end_by_group")


class UnusedSettingsError(ValueError):
    """Settings are set that the chosen mode has no use for.

    Attributes:
        names: of them.
    """

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Which pasted instances are trained on.

    A setting that the chosen mode, reference or policy has no use for is refused, unless it is at
    its default; `bsgal_train.recipe.modes` says which uses what. Where a type is "... | None", None
    (written `null` on the command line) leaves the choice to the mode.

    Attributes:
        mode: `none` never pastes; `paste_all` trains on everything; `paste_random` accepts
            `kept_share` by lot; `listed` rejects what `rejected_ids` names; `paper`, `batch`,
            `image` and `instance` compare gradients, once per batch, image or instance; `oracle`
            measures the loss difference of every instance.
        reference: what real data an instance or image is compared with: `in_batch`, the real
            objects of the step's own images; `class_matched`, real images of the pasted
            categories, every `refresh_every` steps; `hybrid`, both. `own_class` (`instance` only)
            compares each instance with real objects of its own class, on its class's row of the
            classifier: those of the step's images, after `images_per_class` images of every class
            before the first step. `evidence` (`instance` only) compares no gradients: each look at
            an instance is held against looks at real objects, and looks add up (see
            `bsgal_train.selection.evidence`). None means `evidence` for `instance` where `form` is
            not set, else `in_batch`. `paper` and `batch` are always class-matched.
        sources: what `evidence` looks at.
        alpha: level of `evidence`: at most about this share of real objects would be rejected.
        min_looks: looks at an instance below which `evidence` leaves it uncertain: trained on.
        max_looks: up to so many looks at an instance weigh alike; then the older ones fade.
        evidence: a table of `bsgal-train screen` or `bsgal-train evidence` to begin with: it counts
            for an instance until the run has looked at it as often.
        steer: draw by `evidence`: what is rejected hardly any more, what is uncertain more often.
        publish_every: steps after which the draws follow what was found out.
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
            do; `level` (with `evidence`) accepts p-values above `alpha`. None means `level` with
            `evidence`, `like_real` with `own_class` where no threshold is set, else `fixed`.
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
        rejected_ids: `listed` only: JSON file with a list of the instance ids that are rejected, or
            an object whose keys they are, such as a `planted.json`.
        oracle_step: `oracle` takes the step with the whole batch, with and without the instance
            (`in_batch`), or with the instance `alone`.
        nothing_to_judge: `paper` only: `no_evidence` trains on a batch without a pasted proposal
            and enters it in no window; `zero` scores it 0, as the released code does.
        reference_classes: `paper` only: `all` takes every class of the reference loss, as the
            released code does; `federated` masks classes there as in training.
    """

    mode: str = "none"
    reference: Reference | None = None
    sources: tuple[EvidenceSource, ...] = ("prototype", "outline")
    alpha: float = 0.05
    min_looks: int = 2
    max_looks: int = 8
    evidence: str = ""
    steer: bool = True
    publish_every: int = 10
    form: ScoreForm = "cosine"
    losses: tuple[LossKind, ...] = ()
    layers: Literal["last", "heads"] = "last"
    refresh_every: int = 16
    images_per_class: int = 4
    decay: float | None = None
    rowwise: bool = False
    cache_dtype: Literal["fp32", "bf16"] = "fp32"
    policy: PolicyName | None = None
    threshold: float | None = None
    kept_share: float = 0.5
    kept_share_end: float = 0.5
    real_kept_share: float = 0.99
    window: int = 1000
    per_group: bool = False
    threshold_by_group: tuple[float, ...] = ()
    kept_share_by_group: tuple[float, ...] = ()
    kept_share_end_by_group: tuple[float, ...] = ()
    granularity: Granularity = "instance"
    rejected_ids: str = ""
    oracle_step: Literal["in_batch", "alone"] = "in_batch"
    nothing_to_judge: Literal["no_evidence", "zero"] = "no_evidence"
    reference_classes: Literal["all", "federated"] = "all"

    def __post_init__(self) -> None:
        require(
            self.mode in MODES,
            f"recipe key `selection.mode` must be one of {', '.join(MODES)}: `{self.mode}`",
        )
        references = [name for name in self.spec.scores if name is not None]
        if references and self.reference not in (None, *references):
            raise ValueError(
                f"selection.mode={self.mode} takes no selection.reference={self.reference}: choose "
                f"{_one_of(references)}"
            )
        policies = self.scores.policies
        if policies and self.effective_policy not in policies:
            raise ValueError(
                f"selection.policy={self.effective_policy} cannot judge what selection.mode="
                f"{self.mode} with selection.reference={self.effective_reference} scores: choose "
                f"{_one_of(policies)}, or another selection.reference"
            )
        self._refuse_unused()
        self._check_numbers()

    def _refuse_unused(self) -> None:
        used = self.spec.settings_of(self.effective_reference, self.effective_policy)
        unused = {
            one.name: one.default
            for one in dataclasses.fields(self)
            if one.name not in used and getattr(self, one.name) != one.default
        }
        if self.losses == self.scores.losses:
            # Said, and true all the same.
            unused.pop("losses", None)
        if unused:
            named = [
                f"selection.{name}={_as_text(getattr(self, name))}, which is for "
                f"{self._where_used(name)}"
                for name in unused
            ]
            mended = [f"selection.{name}={_as_text(value)}" for name, value in unused.items()]
            raise UnusedSettingsError(
                f"{self._chosen} has no use for {'; nor for '.join(named)}. Choose that, or leave "
                f"it out: {' '.join(mended)}",
                tuple(unused),
            )

        require(
            self.mode != "listed" or bool(self.rejected_ids),
            "selection.mode=listed needs selection.rejected_ids, a JSON file of instance ids",
        )

    def _check_numbers(self) -> None:
        decay, threshold = self.effective_decay, self.effective_threshold
        require(0 <= decay < 1, f"selection.decay must be in [0, 1), got {decay}")
        require(
            self.cache_dtype == "fp32" or decay <= 0.9,
            f"selection.cache_dtype=bf16 needs a selection.decay of at most 0.9, got {decay}: the "
            "updates of a longer memory are lost in 8 bits",
        )
        require(
            not self._is_cosine or -1 <= threshold <= 1,
            f"selection.threshold is a cosine, in [-1, 1], got {threshold}",
        )
        require(math.isfinite(threshold), "selection.threshold must be finite")
        require(0 < self.alpha < 1, f"selection.alpha must lie in (0, 1), got {self.alpha}")
        require(
            1 <= self.min_looks <= self.max_looks < 256,
            "selection.min_looks must lie in [1, selection.max_looks], and that below 256, got "
            f"{self.min_looks} and {self.max_looks}",
        )
        require(self.publish_every >= 1, "selection.publish_every must be at least 1")
        known = get_args(EvidenceSource)
        require(
            bool(self.sources)
            and len(set(self.sources)) == len(self.sources)
            and set(self.sources) <= set(known),
            f"selection.sources must be some of {', '.join(known)}, each once: {self.sources}",
        )
        require(self.refresh_every >= 1, "selection.refresh_every must be at least 1")
        require(self.window >= 1, "selection.window must be at least 1")
        require(
            len(set(self.losses)) == len(self.losses),
            f"selection.losses names a loss twice: {self.losses}",
        )
        require(self.images_per_class >= 0, "selection.images_per_class must be >= 0")
        shares = (self.kept_share, self.kept_share_end, self.real_kept_share)
        for share in (*shares, *self.kept_share_by_group, *self.kept_share_end_by_group):
            require(0 <= share <= 1, f"selection.kept_share... must be in [0, 1], got {share}")
        for name in _BY_GROUP:
            n_values = len(getattr(self, name))
            require(
                n_values in (0, 3),
                f"selection.{name} needs three values, for r, c and f, got {n_values}",
            )

    @classmethod
    def of_stored(cls, values: Mapping[str, Any]) -> SelectionConfig:
        """Make the settings of a run that was begun before unused settings were refused.

        Args:
            values: by name; those that the mode has no use for are left out, and the log says so.
                Where `sources` is missing, `instance` compared gradients on the own class's row.

        Raises:
            ValueError: a value makes no sense.
        """
        if values.get("mode") == "instance" and "sources" not in values:
            gradients = {name: one for name, one in MODES["instance"].scores.items() if one.caches}
            form = values.get("form", "cosine")
            first = next(
                name
                for name, one in gradients.items()
                if form == "cosine" or "form" in one.settings
            )
            values = {**values, "reference": values.get("reference") or first}
        try:
            return cls(**values)
        except UnusedSettingsError as error:
            logger.warning(
                "left out of the stored recipe, where it had no effect: %s (selection.mode=%s)",
                ", ".join(f"selection.{name}={_as_text(values[name])}" for name in error.names),
                values.get("mode", cls().mode),
            )
            kept = {name: value for name, value in values.items() if name not in error.names}
            return cls(**kept)

    @property
    def spec(self) -> ModeSpec:
        """What the mode needs."""
        return MODES[self.mode]

    @property
    def scores(self) -> ScoreSpec:
        """How the mode's scores are made."""
        return self.spec.scores[self.effective_reference]

    @property
    def effective_reference(self) -> Reference | None:
        """The reference, resolved for mode and form; None where the mode leaves no choice."""
        scores = self.spec.scores
        if None in scores:
            return None
        if self.reference is not None:
            return self.reference
        fitting = [name for name, one in scores.items() if self._fits(one)]
        # Where none can be judged as it is asked for, the policy is what is refused.
        return (fitting or list(scores))[0]

    @property
    def reference_every(self) -> int:
        """Steps between two that take class-matched real images, from the first on; 0: none do."""
        if not self.scores.class_matched:
            return 0
        return self.refresh_every if "refresh_every" in self.scores.settings else 1

    @property
    def effective_policy(self) -> PolicyName:
        """The policy, resolved for the reference."""
        if self.policy is not None:
            return self.policy
        if self._has_threshold or not self.scores.policies:
            return "fixed"
        return self.scores.policies[0]

    @property
    def effective_losses(self) -> tuple[LossKind, ...]:
        """The losses that count, resolved for mode and reference."""
        return self.losses or self.scores.losses

    @property
    def effective_decay(self) -> float:
        """The decay, resolved for the mode."""
        return self.scores.decay if self.decay is None else self.decay

    @property
    def effective_threshold(self) -> float:
        """The threshold, resolved for form and mode."""
        if self.threshold is not None:
            return self.threshold
        return (self.scores.cosine_threshold or 0.0) if self._is_cosine else 0.0

    @property
    def is_per_group(self) -> bool:
        """Whether frequency groups are judged apart."""
        return self.per_group or any(getattr(self, name) for name in _BY_GROUP)

    def _fits(self, scores: ScoreSpec) -> bool:
        """Whether scores can be of the form, and judged by the policy, that are set."""
        policy = self.policy or ("fixed" if self._has_threshold else None)
        return (self.form == "cosine" or "form" in scores.settings) and (
            policy is None or policy in scores.policies
        )

    @property
    def _has_threshold(self) -> bool:
        return self.threshold is not None or bool(self.threshold_by_group)

    @property
    def _is_cosine(self) -> bool:
        return self.form == "cosine" and self.scores.cosine_threshold is not None

    @property
    def _chosen(self) -> str:
        """The mode with what it was resolved to, for messages."""
        found = f"selection.mode={self.mode}"
        if self.effective_reference is not None:
            found += f" (reference {self.effective_reference}, policy {self.effective_policy})"
        elif self.scores.policies:
            found += f" (policy {self.effective_policy})"
        return found

    def _where_used(self, setting: str) -> str:
        """Return what would have to be chosen for a setting to have an effect, for messages."""
        modes = {
            name: [
                (reference, policy)
                for reference, policy in spec.choices()
                if setting in spec.settings_of(reference, policy)
                and (setting != "reference" or reference == self.reference)
                and (setting != "policy" or policy == self.policy)
            ]
            for name, spec in MODES.items()
        }
        choices = modes[self.mode]
        if not choices:
            return f"selection.mode={_one_of(name for name, found in modes.items() if found)}"
        references = [reference for reference, _ in choices]
        if self.effective_reference not in references:
            return f"selection.reference={_one_of(name for name in references if name)}"
        return f"selection.policy={_one_of(policy for _, policy in choices)}"


def _one_of(names: Iterable[str]) -> str:
    """List names as alternatives, each once."""
    *firsts, last = dict.fromkeys(names)
    return f"{', '.join(firsts)} or {last}" if firsts else last


def _as_text(value: Any) -> str:
    """Write a value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
