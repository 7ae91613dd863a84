"""Federated loss: in each batch only some categories take part in the classification loss.

LVIS checked only some categories in each image, so an object of another one may be there without
an annotation; and a rare category would be pushed down as a negative by every batch. Taking part
are the categories of the batch's proposals and, up to a number, others drawn by how frequent they
are (Zhou, Koltun and Krähenbühl, 2021, arXiv 2103.07461, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsgal_train.processes import group as processes

__all__ = ["FederatedClasses"]


class FederatedClasses:
    """Draw the classes of a batch.

    The published code counts the background among the classes present; here the number is of
    classes alone.

    Args:
        image_counts: training images of each class; classes in no image are never drawn.
        n_classes: classes that take part in a batch. More if more are present; fewer if there are
            not as many with an image.
        power: a class is drawn in proportion to its image count to this power.
    """

    def __init__(self, image_counts: Sequence[int], n_classes: int, power: float = 0.5) -> None:
        if n_classes < 1:
            raise ValueError(f"`n_classes` must be at least 1, got {n_classes}")
        self._weights = torch.tensor(image_counts, dtype=torch.float32) ** power
        self._weights[torch.tensor(image_counts) == 0] = 0.0
        self._n_classes = n_classes

    def draw(self, gt_classes: Tensor) -> Tensor:
        """Return the classes that take part, ascending, from torch's global generator.

        The processes of a run draw together, so all of them have to draw: the classes present in
        any of them take part in all.

        Args:
            gt_classes: long (R,), class of each proposal; background is the number of classes.
        """
        present = torch.unique(gt_classes.cpu())
        present = present[(present >= 0) & (present < len(self._weights))]
        # The last process holds the batch's last image, after which one process would draw.
        seed = processes.gather([int(torch.randint(1 << 62, ()))])[-1][0]
        present = torch.tensor(sorted(set().union(*processes.gather(present.tolist()))))
        present = present.to(torch.int64)
        weights = self._weights.clone()
        weights[present] = 0.0
        n_drawn = min(self._n_classes - len(present), int((weights > 0).sum()))
        if n_drawn > 0:
            generator = torch.Generator().manual_seed(seed)
            present = torch.cat([present, torch.multinomial(weights, n_drawn, generator=generator)])
        taking_part: Tensor = present.sort().values
        return taking_part.to(gt_classes.device)
