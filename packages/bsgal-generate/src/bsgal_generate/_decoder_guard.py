"""Watches a pipeline's image decoder, and decodes again in float32 where half precision overflows.

Some autoencoders overflow in float16 and give NaN, which a pipeline turns into a black image. The
latents are fine then, so decoding them once more in float32 saves the image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodedImages:
    """What the decoder did during one call, by position in the batch."""

    nonfinite: set[int] = field(default_factory=set)
    decoded_again: set[int] = field(default_factory=set)


@contextmanager
def guarded_decoder(pipeline: Any) -> Iterator[DecodedImages]:
    """Guard `pipeline.vae.decode` while the context is open; without one, do nothing."""
    seen = DecodedImages()
    vae = getattr(pipeline, "vae", None)
    if not isinstance(vae, torch.nn.Module) or not hasattr(vae, "decode"):
        yield seen
        return
    plain_decode: Any = vae.decode
    replaced_before = vars(vae).get("decode")

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = plain_decode(z, *args, **kwargs)
        images = output[0]
        bad = _nonfinite_rows(images)
        if bad and images.dtype != torch.float32:
            again = [i for i in bad if bool(torch.isfinite(z[i]).all())]
            _decode_in_float32(vae, plain_decode, z, images, again)
            bad = [i for i in bad if not bool(torch.isfinite(images[i]).all())]
            seen.decoded_again.update(set(again) - set(bad))
        seen.nonfinite.update(bad)
        return output

    vae.decode = decode  # type: ignore[assignment]
    try:
        yield seen
    finally:
        if replaced_before is None:
            del vae.decode
        else:
            vae.decode = replaced_before


def _decode_in_float32(
    vae: torch.nn.Module, decode: Any, z: torch.Tensor, images: torch.Tensor, rows: list[int]
) -> None:
    if not rows:
        return
    logger.warning("the decoder overflowed in %s; decoding again in float32", images.dtype)
    stored = next(vae.parameters()).dtype
    vae.to(torch.float32)
    try:
        for i in rows:
            images[i] = decode(z[i : i + 1].float(), return_dict=False)[0][0].to(images.dtype)
    finally:
        vae.to(stored)


def _nonfinite_rows(images: torch.Tensor) -> list[int]:
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    return [i for i, is_finite in enumerate(finite.tolist()) if not is_finite]
