"""How images are drawn: everything that decides which pixels a plan turns into."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SET_ELSEWHERE = (
    "prompt",
    "negative_prompt",
    "generator",
    "output_type",
    "num_images_per_prompt",
    "return_dict",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Settings of the denoising and of the checks on its result.

    They are written to `meta.json`, and a run that continues an image set must have the same ones.
    """

    num_inference_steps: int | None = None
    """Denoising steps; None takes the pipeline's own default (20 for `tiny`)."""

    guidance_scale: float | None = None
    """Strength of the prompt; None takes the pipeline's own default (3.0 for `tiny`)."""

    height: int | None = None
    """Image height in pixels; None takes the size the pipeline was trained for."""

    width: int | None = None
    """Image width in pixels; None takes the size the pipeline was trained for."""

    max_redraws: int = 2
    """How often a flagged, blank or non-finite image is drawn again with another seed."""

    blank_std: float = 1.0
    """An image is blank if no colour channel's standard deviation reaches this, in grey levels."""

    pipeline_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of the pipeline's call, JSON values, such as `{"eta": 0.5}`."""

    def __post_init__(self) -> None:
        for name, value in self.pipeline_arguments.items():
            if name in _SET_ELSEWHERE or name in self.__slots__:
                raise ValueError(
                    f"`pipeline_arguments` must not hold {name!r}; it is set elsewhere"
                )
            if not _is_json(value):
                raise ValueError(
                    f"`pipeline_arguments` must hold JSON values, got {value!r} for {name!r}"
                )
        for name in ("num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be None or an int of at least 1, got {value!r}")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"`guidance_scale` must be finite, got {self.guidance_scale!r}")
        if type(self.max_redraws) is not int or self.max_redraws < 0:
            raise ValueError(
                f"`max_redraws` must be an int of at least 0, got {self.max_redraws!r}"
            )
        if not 0 <= self.blank_std < math.inf:
            raise ValueError(
                f"`blank_std` must be at least 0 and finite, in grey levels, got {self.blank_std!r}"
            )


def _is_json(value: object) -> bool:
    """Return whether a value is the same after it was written to a file and read again."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
