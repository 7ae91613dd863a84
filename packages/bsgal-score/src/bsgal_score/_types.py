"""Small value types that several modules share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Implementation = Literal["auto", "triton", "torch"]


class CacheSums(NamedTuple):
    """The three sums of one pass over cache c and candidate gradient k (0-d float64 tensors)."""

    dot: Tensor
    """⟨c, k⟩."""
    cache_sqnorm: Tensor
    """⟨c, c⟩."""
    candidate_sqnorm: Tensor
    """⟨k, k⟩."""


class TensorMetric(NamedTuple):
    """One tensor's diagonal s of the inner product Σ x·s·y.

    s = scale / (√(v / bias_correction) + eps), or s = scale without second moments v.
    """

    scale: float = 1.0
    """Factor of the whole tensor, for example its learning rate."""
    second_moment: Tensor | None = None
    """Adam's running mean of squared gradients v, fp32, in the shape of the tensor."""
    bias_correction: float = 1.0
    """Divides v; Adam's 1 - β₂ᵗ."""
    eps: float = 0.0
    """Added to the root."""
