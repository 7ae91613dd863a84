"""Where the predictions of a feature pyramid sit in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Locations"]


@dataclass(frozen=True, slots=True)
class Locations:
    """All places of a pyramid at which something is predicted, level after level, row by row.

    Attributes:
        xy: float (M, 2), centre of each place in pixels of the padded image.
        stride: float (M,), pixels between neighbours of its level.
        level: long (M,), number of its level.
        level_hw: height and width of each level, in places.
        level_strides: stride of each level, in pixels.
    """

    xy: Tensor
    stride: Tensor
    level: Tensor
    level_hw: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]

    @classmethod
    def of(
        cls,
        level_hw: Sequence[tuple[int, int]],
        strides: Sequence[int],
        device: torch.device | None = None,
    ) -> Locations:
        """Lay out the places of levels of the given sizes."""
        parts = []
        for (height, width), stride in zip(level_hw, strides, strict=True):
            y, x = (
                torch.arange(n, dtype=torch.float32, device=device) * stride + stride // 2
                for n in (height, width)
            )
            parts.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1))
        counts = torch.tensor([len(part) for part in parts], device=device)
        level = torch.repeat_interleave(torch.arange(len(parts), device=device), counts)
        return cls(
            xy=torch.cat(parts),
            stride=torch.tensor(strides, dtype=torch.float32, device=device)[level],
            level=level,
            level_hw=tuple((int(height), int(width)) for height, width in level_hw),
            level_strides=tuple(strides),
        )

    def __len__(self) -> int:
        return len(self.xy)

    def index_of(self, points_xy: Tensor, level: int) -> Tensor:
        """Return the place of a level whose cell holds each point (N, 2): long (N,)."""
        start = sum(height * width for height, width in self.level_hw[:level])
        height, width = self.level_hw[level]
        column, row = (points_xy / self.level_strides[level]).long().unbind(1)
        return start + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
