"""What one forward pass shows of every object of a batch, pasted or real.

A look at an object gives its region feature and its own losses, each the mean over the object's
rows, so that an object with many proposals does not look worse than one with few. No gradient is
needed and nothing is drawn beyond what the pass draws, so that looks in a training step cost next
to nothing: some sums by object, and one copy to the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bsgal_train.data.samples import TrainingSample
from bsgal_train.detector.row_losses import RowLosses, Rows
from bsgal_train.selection.scoring.real_gradient import classifiers

__all__ = ["LOSSES", "Looks", "looks_at", "recorded_features"]

LOSSES = ("cls_loss", "box_loss", "mask_loss", "mask_hardest")
"""Names of the losses in `Looks.losses`."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Looks:
    """Looks at the n objects of a batch, by image and in the order of its "instances".

    Attributes:
        ids: n names: a pasted object's is its instance's in the pool, a real one's is
            `image_id:annotation_id`.
        classes: int64 (n,), class indices.
        is_real: bool (n,), annotated and not pasted.
        features: float32 (n, d), mean input of the classifier over the proposals matched to the
            object, in the first stage of a cascade, which is the one that matches most; NaN where
            none is.
        losses: by name, of `LOSSES`, float32 (n,): mean over the object's rows, of all stages of a
            cascade together; NaN where it has no row of this loss. `mask_hardest` is the mask loss
            of the hardest pixels (`RowLosses.hardest`).
        visible_frac: float32 (n,), share of the object that can be seen.
    """

    ids: tuple[str, ...]
    classes: npt.NDArray[np.int64]
    is_real: npt.NDArray[np.bool_]
    features: npt.NDArray[np.float32]
    losses: Mapping[str, npt.NDArray[np.float32]]
    visible_frac: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Looks:
        """Return the looks at some of the objects, by mask (n,)."""
        return Looks(
            ids=tuple(name for name, is_chosen in zip(self.ids, chosen, strict=True) if is_chosen),
            classes=self.classes[chosen],
            is_real=self.is_real[chosen],
            features=self.features[chosen],
            losses={name: values[chosen] for name, values in self.losses.items()},
            visible_frac=self.visible_frac[chosen],
        )


@contextmanager
def recorded_features(detector: nn.Module) -> Iterator[list[Tensor]]:
    """Fill a list with the inputs of the first stage's classifier, (R, d) for each forward pass."""
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    handle = classifiers(detector)[0].register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def looks_at(
    rows: Sequence[RowLosses], features: Tensor, samples: Sequence[TrainingSample]
) -> Looks:
    """Return a look at every object of a batch.

    Args:
        rows: all that was recorded in one forward pass on the pasted images of `samples`.
        features: (R, d), as recorded in the same pass.
        samples: the batch.

    Raises:
        ValueError: `rows` or `features` are of another pass.
    """
    images = [sample.pasted for sample in samples]
    firsts = [0, *accumulate(len(one) for one in images)]
    of_kind = {kind: [one for one in rows if one.kind == kind] for kind in ("cls", "box", "mask")}
    if not of_kind["cls"] or len(of_kind["cls"][0].per_row) != len(features):
        raise ValueError(
            f"there must be a class loss of {len(features)} rows, as there are features; record "
            "both in the same pass"
        )
    columns = [_means_by_object([(of_kind["cls"][0].rows, features)], firsts)]
    parts = [[(one.rows, one.per_row[:, None]) for one in kind] for kind in of_kind.values()]
    hardest = [(one, one.hardest) for one in of_kind["mask"]]
    parts.append([(one.rows, values[:, None]) for one, values in hardest if values is not None])
    for part in parts:
        columns.append(
            _means_by_object(part, firsts)
            if part
            # A detector without such a head.
            else features.new_full((firsts[-1], 1), torch.nan)
        )
    values = torch.cat([column.float() for column in columns], dim=1).cpu().numpy()
    width = features.shape[1]
    return Looks(
        ids=tuple(name for sample in samples for name in _names(sample)),
        classes=torch.cat([one.class_indices for one in images]).numpy(),
        is_real=torch.cat([one.source < 0 for one in images]).numpy(),
        features=values[:, :width],
        losses={name: values[:, width + k] for k, name in enumerate(LOSSES)},
        visible_frac=torch.cat([one.visible_frac for one in images]).numpy(),
    )


def _names(sample: TrainingSample) -> list[str]:
    image = sample.pasted
    return [
        f"{image.image_id}:{annotation_id}" if source < 0 else sample.pastes[source].instance_id
        for annotation_id, source in zip(
            image.annotation_ids.tolist(), image.source.tolist(), strict=True
        )
    ]


def _means_by_object(parts: Sequence[tuple[Rows, Tensor]], firsts: Sequence[int]) -> Tensor:
    """Return the mean of values (R, k) over the rows of every object, float32 (n, k), NaN of none.

    As a product of matrices, which is reproducible on GPUs where adding up by index is not.
    """
    first = torch.tensor(firsts[:-1], device=parts[0][1].device)
    index, values = [], []
    for rows, of_rows in parts:
        chosen = (rows.object >= 0).nonzero()[:, 0]
        index.append(first[rows.image[chosen]] + rows.object[chosen])
        values.append(of_rows[chosen].float())
    objects = torch.arange(firsts[-1], device=first.device)
    is_of = (objects[:, None] == torch.cat(index)).float()
    return is_of @ torch.cat(values) / is_of.sum(dim=1, keepdim=True)
