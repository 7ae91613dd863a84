"""Decides whether drawn pixels are an image worth keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._image_set import Status
from ._pipelines import Drawing


@dataclass(frozen=True, slots=True)
class Judged:
    """The outcome of one attempt.

    Attributes:
        status: Whether it gave an image, or why not.
        reason: One sentence for people, or None.
        image: uint8 RGB (H, W, 3), or RGBA (H, W, 4) from a pipeline that draws alpha; None unless
            `status` is ok.
    """

    status: Status
    reason: str | None
    image: npt.NDArray[np.uint8] | None = None


def judge(drawing: Drawing, i: int, blank_std: float) -> Judged:
    """Judge image `i` of a batch, before it is rounded to 8 bits.

    Args:
        drawing: The batch.
        i: Position in it.
        blank_std: Least standard deviation, in grey levels, of at least one colour channel.
    """
    pixels = drawing.pixels[i]
    if drawing.flagged[i]:
        return Judged("flagged", "the pipeline's safety checker flagged it")
    if drawing.nonfinite[i] or not np.isfinite(pixels).all():
        return Judged("nonfinite", "the pipeline returned NaN or infinite values")
    image = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    spread = float(_seen(image).std(axis=(0, 1)).max())
    if spread < blank_std:
        return Judged("blank", f"standard deviation of {spread:.2f} grey levels, below {blank_std}")
    reason = "decoded in float32 after an overflow" if drawing.decoded_again[i] else None
    return Judged("ok", reason, image)


def _seen(image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return the image; with alpha, its colours only as far as they are opaque."""
    if image.shape[2] == 3:
        return image
    colours, alpha = image[..., :3], image[..., 3:]
    return np.concatenate([colours * (alpha / 255), alpha], axis=2)
