"""Put the values of a look on one scale, which neither moves with the model nor differs by source.

A value becomes its rank among the newest values of real units of its frequency group, as a quantile
of the normal distribution. So a look says by how much a unit looks worse than real ones do *now*,
and looks of different times can be added up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ._pooled_ranks import SortedGroups, split


def normal_scores(
    values: NDArray[np.float32],
    own: NDArray[np.float32],
    groups: NDArray[np.int32],
    real: Sequence[SortedGroups],
    pooling: float,
    min_real: int,
) -> NDArray[np.float32]:
    """Return the normal scores of units' values among those of real units.

    With n real units of the group, of which r are below (ties count half), and R of N of the other
    groups, Φ⁻¹ of the mean of (r + ½) / (n + 1) with weight n and (R + ½) / (N + 1) with weight k:
    where the group has shown few, all others help it out.

    Args:
        values: Large is bad, NaN is none, (m, n_sources).
        own: Values of the units that are among the real ones and must not count, (m, n_sources);
            NaN for none.
        groups: Their groups, (m,).
        real: The real units' values, by source.
        pooling: k, how many real units of the group the other groups weigh as much as; at most N.
        min_real: NaN where n + k is less.

    Returns:
        float32 (m, n_sources), 0 for an ordinary real unit and positive for a worse one.
    """
    shares = np.empty(values.shape)
    for source, sorted_groups in enumerate(real):
        column, mine = values[:, source], own[:, source]
        counts = sorted_groups.below(column, ties=0.5)
        below, n, others, n_others = split(counts, sorted_groups.sizes, groups)
        below -= (mine < column) + 0.5 * (mine == column)
        n = n - ~np.isnan(mine)
        k = np.minimum(pooling, n_others)
        total = n * (below + 0.5) / (n + 1) + k * (others + 0.5) / (n_others + 1)
        enough = n + k >= min_real
        shares[:, source] = np.where(enough, total / np.where(enough, n + k, 1), np.nan)
    shares[np.isnan(values)] = np.nan
    quantiles: NDArray[np.float32] = torch.special.ndtri(torch.from_numpy(shares)).float().numpy()
    return quantiles
