"""Combine the pixels of a cutout with those below it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

from bsgal_paste._arrays import ByteArray
from bsgal_paste._cutout import Cutout

BlendMode: TypeAlias = Literal["hard", "alpha"]
"""`hard`: a pixel of the label mask is replaced, no other changes. `alpha`: every pixel is mixed
by the cutout's soft alpha, so that pixels just outside the label mask change a little too."""

BLEND_MODES: tuple[str, ...] = get_args(BlendMode)


def blend(image: ByteArray, cutout: Cutout, mode: BlendMode) -> None:
    """Paste a cutout into `image`, in place.

    Args:
        image: uint8 RGB `(H, W, 3)`; changed inside the cutout's window only.
        cutout: What to paste.
        mode: One of `BLEND_MODES`.
    """
    region = image[cutout.rows, cutout.columns]
    if mode == "hard":
        np.copyto(region, cutout.rgb, where=cutout.label_mask[..., None])
        return
    weight = cutout.alpha[..., None].astype(np.float32) / 255
    region[:] = np.rint(region + weight * (cutout.rgb.astype(np.float32) - region))
