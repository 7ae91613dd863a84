"""Drop-path whose draws in an image do not depend on the images, parts and processes beside it."""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from bsgal_train.detector.sampling import image_draws

__all__ = ["ImageWiseDropPath", "drop_image_by_image"]

_FIRST_STAGE = 1000
"""Of `image_draws`, for the first block; further ones count on."""


class ImageWiseDropPath(nn.Module):
    """Leave out a block's branch in some images ("stochastic depth", arXiv 1603.09382).

    Args:
        drop_prob: of each image, in [0, 1).
        stage: a number of its own for each module.
    """

    def __init__(self, drop_prob: float, stage: int) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self._stage = stage

    def forward(self, branch: Tensor) -> Tensor:
        """Return zeros for some images of (N, ...), the others scaled so that the mean is kept."""
        if not self.training:
            return branch
        kept = image_draws(len(branch), self._stage) >= self.drop_prob
        scale = kept.to(branch) / (1 - self.drop_prob)
        return branch * scale.view(-1, *[1] * (branch.dim() - 1))


def drop_image_by_image(model: nn.Module) -> None:
    """Put `ImageWiseDropPath` in the place of every drop-path of a timm model."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, DropPath)
    ]
    for number, (parent, name, child) in enumerate(found):
        setattr(parent, name, ImageWiseDropPath(float(child.drop_prob), _FIRST_STAGE + number))
