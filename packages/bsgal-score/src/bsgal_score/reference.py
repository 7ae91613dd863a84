"""The definition of correct: every operation in plain float64 torch, written for reading.

Tests and benchmarks compare the fast implementations with these functions. Nothing here is fast,
nothing here works in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._types import CacheSums, TensorMetric


def metric_weight(metric: TensorMetric | None, like: Tensor) -> Tensor:
    """Compute the diagonal s of Σ x·s·y, in float64 and in the shape of `like`."""
    weight = torch.ones(like.shape, dtype=torch.float64, device=like.device)
    if metric is None:
        return weight
    if metric.second_moment is not None:
        corrected = metric.second_moment.double() / metric.bias_correction
        weight = weight / (corrected.sqrt() + metric.eps)
    return weight * metric.scale


def cache_update_dot(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None] | None,
    candidate: Sequence[Tensor | None] | None,
    *,
    decay: float = 0.0,
    row_decay: Sequence[Tensor | None] | None = None,
    metric: Sequence[TensorMetric | None] | None = None,
) -> tuple[list[Tensor], CacheSums]:
    """Return c ← decay·c + (1 - decay)·g, and ⟨c, k⟩, ⟨c, c⟩, ⟨k, k⟩ with the new c.

    The new c is rounded to the dtype of the cache before it enters the sums, since that is what a
    later call will find there. Arguments as in `bsgal_score.ops.cache_update_dot`.
    """
    new_cache: list[Tensor] = []
    sums = torch.zeros(3, dtype=torch.float64, device=cache[0].device)
    for index, old in enumerate(cache):
        new = old.double()
        if reference is not None:
            gradient = reference[index]
            gradient64 = torch.zeros_like(new) if gradient is None else gradient.double()
            rows = None if row_decay is None else row_decay[index]
            weight: Tensor | float = decay
            if rows is not None:
                weight = rows.double().reshape(-1, *[1] * (old.dim() - 1))
            new = weight * new + (1 - weight) * gradient64
        new_cache.append(new.to(old.dtype))
        c = new_cache[-1].double()
        k64 = torch.zeros_like(c)
        if candidate is not None and (k := candidate[index]) is not None:
            k64 = k.double()
        s = metric_weight(None if metric is None else metric[index], old)
        sums += torch.stack([(c * s * k64).sum(), (c * s * c).sum(), (k64 * s * k64).sum()])
    return new_cache, CacheSums(*sums.unbind())


def ghost_dot(
    weights: Tensor, inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> Tensor:
    """Return ⟨C, G_i⟩ for every unit i, with its gradient G_i = Σ over its rows of δ aᵀ formed.

    Arguments as in `bsgal_score.ops.ghost_dot`.
    """
    gradients = unit_gradients(inputs, output_grads, unit_index, n_units)
    return torch.stack([(weights.double() * gradient).sum() for gradient in gradients])


def ghost_sqnorm(inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int) -> Tensor:
    """Return ‖G_i‖² for every unit i; arguments as in `bsgal_score.ops.ghost_sqnorm`."""
    gradients = unit_gradients(inputs, output_grads, unit_index, n_units)
    return torch.stack([gradient.square().sum() for gradient in gradients])


def unit_gradients(
    inputs: Tensor, output_grads: Tensor, unit_index: Tensor, n_units: int
) -> list[Tensor]:
    """Form every unit's gradient of a weight (n_outputs, n_inputs), in float64."""
    return [
        output_grads[unit_index == unit].double().T @ inputs[unit_index == unit].double()
        for unit in range(n_units)
    ]


def lowbias32(x: int) -> int:
    """Scramble a 32-bit integer, one to one; https://nullprogram.com/blog/2018/07/31/."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> shift
        x = x * factor % 2**32
    return x ^ (x >> 16)


def sketch_hash(seed: int, stream: int, number: int) -> int:
    """Return the 32-bit hash of a number below 2³² in one of a seed's two streams.

    Stream 0 holds the shifts of blocks, stream 1 the signs, as the bits of words.
    """
    key = lowbias32(lowbias32((2 * seed + stream) % 2**32) ^ (2 * seed >> 32) % 2**32)
    return lowbias32(lowbias32(number) ^ key)


def sketch(
    tensors: Sequence[Tensor | None], numels: Sequence[int], width: int, seed: int
) -> Tensor:
    """Add up signed elements bucket by bucket, one element at a time, in float64."""
    total = [0.0] * width
    first_block = 0
    for tensor, numel in zip(tensors, numels, strict=True):
        values = [] if tensor is None else tensor.reshape(-1).tolist()
        for element, value in enumerate(values):
            block, place = first_block + element // width, element % width
            shift = sketch_hash(seed, 0, block) % width
            word = sketch_hash(seed, 1, block * (width // 32) + place // 32)
            total[place ^ shift] += -value if (word >> (place % 32)) & 1 else value
        first_block += math.ceil(numel / width)
    return torch.tensor(total, dtype=torch.float64)


def cache_update_sketch(
    cache: Sequence[Tensor],
    reference: Sequence[Tensor | None],
    *,
    decay: float,
    width: int,
    seed: int,
) -> tuple[list[Tensor], Tensor]:
    """Return the new cache and its sketch; arguments as in `bsgal_score.ops`."""
    new_cache, _ = cache_update_dot(cache, reference, None, decay=decay)
    return new_cache, sketch(new_cache, [c.numel() for c in new_cache], width, seed)
