"""Reads the verdicts of safety checkers from what a pipeline returns."""

from __future__ import annotations

from typing import Any

_VERDICTS = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")


def flags_of(output: Any, n_images: int) -> tuple[bool, ...]:
    """Return for every image whether a checker flagged it; False where there was none.

    Stable Diffusion's pipelines report one kind of verdict, DeepFloyd IF's two, either of which
    blackens the image.

    Args:
        output: A diffusers pipeline's output.
        n_images: How many images it holds.
    """
    found = [getattr(output, name, None) for name in _VERDICTS]
    verdicts = [list(verdict) for verdict in found if verdict is not None]
    return tuple(any(bool(verdict[i]) for verdict in verdicts) for i in range(n_images))
