"""The losses whose gradients are compared when a score needs a pass of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from bsgal_train.data import LabelledImage
from bsgal_train.detector import autocast, detector_inputs, sampling
from bsgal_train.detector.row_losses import BACKGROUND, RowLosses, recorded
from bsgal_train.processes import group as processes
from bsgal_train.recipe import LossKind, Precision
from bsgal_train.selection.steady import steady_backbone

__all__ = ["candidate_loss", "gradients", "pasted_loss", "reference_loss"]

CLASSES: tuple[LossKind, ...] = ("cls",)


def reference_loss(
    detector: Any,
    labelled: Sequence[LabelledImage],
    precision: Precision,
    seed: int,
    image_keys: Sequence[int] | None = None,
    *,
    kinds: Sequence[LossKind] = CLASSES,
    through_trunk: bool = True,
    all_classes: bool = False,
) -> Tensor | None:
    """Return the loss on real objects.

    Args:
        detector: from `build_detector`, in training mode.
        labelled: real images; those without objects add nothing.
        precision: of convolutions and linear layers.
        seed: of everything drawn.
        image_keys: of the sampling of ordinary proposals, whose foreground counts; None takes the
            objects' own boxes as the only proposals (the paper's procedure).
        kinds: which losses of the region heads are summed.
        through_trunk: let the gradient reach the backbone too.
        all_classes: leave a federated loss's choice of classes out.

    Returns:
        The sum of the losses of foreground rows, with the divisors that the detector has for these
        proposals; None if there is no such row in any process.
    """
    are_annotated = image_keys is None
    if are_annotated and processes.n_processes() == 1:
        labelled = [one for one in labelled if len(one) > 0]
        if not labelled:
            return None
    inputs = detector_inputs(labelled)
    targets = [one["instances"].to(detector.device) for one in inputs]
    with sampling(seed, image_keys), autocast(precision), _scoring(detector, kinds):
        images = detector.preprocess_image(inputs)
        with nullcontext() if through_trunk else torch.no_grad():
            features = detector.backbone(images.tensor)
        with torch.no_grad():
            if are_annotated:
                proposals = [_as_proposals(one) for one in targets]
            else:
                proposals, _ = detector.proposal_generator(images, features, targets)
        as_given = _proposals_as_given(detector.roi_heads) if are_annotated else nullcontext()
        classes = _all_classes(detector.roi_heads) if all_classes else nullcontext()
        with as_given, classes, recorded() as found:
            detector.roi_heads(images, features, proposals, targets)
    return _sum_rows(found, kinds, real_or_pasted=True)


def candidate_loss(
    detector: Any,
    labelled: Sequence[LabelledImage],
    precision: Precision,
    seed: int,
    image_keys: Sequence[int] | None = None,
    *,
    kinds: Sequence[LossKind] = CLASSES,
) -> Tensor | None:
    """Return the loss of the proposals that landed on pasted objects, through the whole detector.

    Args:
        detector: from `build_detector`, in training mode.
        labelled: pasted images; their `source` is >= 0 where pasted.
        precision: of convolutions and linear layers.
        seed: of the sampling; with the training step's seed the same proposals are sampled.
        image_keys: of the sampling, likewise.
        kinds: which losses of the region heads are summed.

    Returns:
        The sum over rows matched to a pasted object, divided as in training (class losses: by the
        number of all sampled proposals); None if no row is matched in any process.
    """
    inputs = detector_inputs(labelled)
    targets = [one["instances"].to(detector.device) for one in inputs]
    with sampling(seed, image_keys), autocast(precision), _scoring(detector, kinds):
        images = detector.preprocess_image(inputs)
        features = detector.backbone(images.tensor)
        with torch.no_grad():
            # Samples anchors as the training step does, so that proposals come out alike.
            proposals, _ = detector.proposal_generator(images, features, targets)
        with recorded() as found:
            detector.roi_heads(images, features, proposals, targets)
    return pasted_loss(found, kinds)


def pasted_loss(losses: Sequence[RowLosses], kinds: Sequence[LossKind]) -> Tensor | None:
    """Return the share of some losses that belongs to pasted objects; None if there is none."""
    return _sum_rows(losses, kinds, real_or_pasted=False)


def gradients(
    loss: Tensor, named_parameters: Mapping[str, nn.Parameter], *, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """Return the mean over processes of a loss's gradient, by name; None where it has none.

    Nothing is accumulated into `.grad`.
    """
    named = {name: p for name, p in named_parameters.items() if p.requires_grad}
    values = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True, retain_graph=retain_graph
    )
    found: dict[str, Tensor | None] = dict(zip(named, values, strict=True))
    if processes.n_processes() > 1:
        # Whether a loss reaches a parameter may differ between processes, the exchange must not.
        filled = [
            torch.zeros_like(p) if value is None else value
            for p, value in zip(named.values(), values, strict=True)
        ]
        processes.average(filled)
        return dict(zip(named, filled, strict=True))
    return found


def _sum_rows(
    losses: Sequence[RowLosses], kinds: Sequence[LossKind], *, real_or_pasted: bool
) -> Tensor | None:
    terms, n_rows = [], 0
    for one in losses:
        if one.kind in kinds:
            keep = one.rows.source > BACKGROUND if real_or_pasted else one.rows.source >= 0
            n_rows += int(keep.sum())
            terms.append(one.total(keep))
    if not processes.total(n_rows):
        return None
    return torch.stack(terms).sum()


def _as_proposals(targets: Instances) -> Instances:
    """Turn annotated objects into proposals that are matched to themselves."""
    proposals = Instances(targets.image_size)
    proposals.proposal_boxes = targets.gt_boxes
    proposals.objectness_logits = torch.zeros(len(targets), device=targets.gt_classes.device)
    for name, value in targets.get_fields().items():
        proposals.set(name, value)
    proposals.gt_object = torch.arange(len(targets), device=targets.gt_classes.device)
    return proposals


@contextmanager
def _proposals_as_given(roi_heads: Any) -> Iterator[None]:
    """Let the heads take proposals as they come instead of matching and sampling them."""
    roi_heads.label_and_sample_proposals = lambda proposals, targets: proposals
    try:
        yield
    finally:
        del roi_heads.label_and_sample_proposals


@contextmanager
def _all_classes(roi_heads: nn.Module) -> Iterator[None]:
    """Let every class take part in a federated loss."""
    federated = [one for one in roi_heads.modules() if getattr(one, "federated", None) is not None]
    draws = [one.federated for one in federated]
    for one in federated:
        one.federated = None  # type: ignore[assignment]  # not a submodule
    try:
        yield
    finally:
        for one, draw in zip(federated, draws, strict=True):
            one.federated = draw


@contextmanager
def _scoring(detector: Any, kinds: Sequence[LossKind]) -> Iterator[None]:
    """Switch off what is random or stateful in the backbone, and heads that do not count."""
    mask_on = detector.roi_heads.mask_on
    detector.roi_heads.mask_on = mask_on and "mask" in kinds
    try:
        with steady_backbone(detector):
            yield
    finally:
        detector.roi_heads.mask_on = mask_on
