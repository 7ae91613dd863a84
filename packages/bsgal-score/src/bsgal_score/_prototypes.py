"""How much a unit's feature is like those of real objects of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ._distributed import agreed, gathered
from ._looks import unit_hashes
from ._policies import check_settings
from ._slots import Slots, occurrence
from .errors import StateMismatchError


class Prototypes:
    """The features of the latest real objects of each class, and the similarity of units to them.

    The similarity is the cosine of a unit's feature with the mean of the directions of its class's
    objects, both centred by the mean over classes. A real unit is compared with the *others* of its
    class: a class with one object has no value for that object, and NaN is returned, which
    `EvidenceBook` takes for a source that says nothing; give that one
    `Source("prototype", "low", shrinkage=100)`, for the values are relative to the class already.

    The mean of few objects is noisy, so that everything is less like it. With the mean cosine r of
    two objects of a class, that with the mean of m is expected to be √r a(m), where
    a(m) = √(m r / (1 + (m - 1) r)). What is missing to m = ∞, √r (1 - a(m)), is added, so that
    classes with few objects can be compared with others. r is found from the pairs in all windows.

    Memory: `window` features per class in `dtype`, and their sum in float32.

    Args:
        n_classes: Number of classes.
        width: Numbers per feature.
        window: Objects remembered per class, the newest ones, each once.
        dtype: Of the features kept, float32 or float16.
        device: Where they are kept and compared.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> prototypes = Prototypes(n_classes=2, width=2)
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
        >>> prototypes.update(["a", "b", "c"], [0, 0, 1], features)
        >>> values = prototypes.compare(["x", "c"], [0, 1], features[[2, 2]], [False, True])
        >>> bool(values[0] < 0), bool(values[1].isnan())
        (True, True)
    """

    def __init__(
        self,
        n_classes: int,
        width: int,
        *,
        window: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, number in (("n_classes", n_classes), ("width", width), ("window", window)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}")
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float16, got {dtype}")
        self.n_classes, self.width, self.window = int(n_classes), int(width), int(window)
        self._slots = Slots(self.n_classes, self.window)
        self._features = torch.zeros(n_classes, window, width, dtype=dtype, device=device)
        self._sums = torch.zeros(n_classes, width, device=device)
        # By class, the sum of the cosines of its ordered pairs, when it was last updated.
        self._pair_sums = torch.zeros(n_classes, dtype=torch.float64)

    def update(
        self,
        ids: Sequence[str],
        classes: Tensor | Sequence[int],
        features: Tensor,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Remember the features of real objects, whose order does not matter.

        Args:
            ids: Of the objects, (n,); a later feature of an object replaces an earlier one.
            classes: Class index of each, (n,).
            features: (n, width), finite.
            group: Processes that share the prototypes; all of them have to call `update`. Their
                features are sent to each. None: this process alone.

        Raises:
            ValueError: If shapes do not fit, a class is unknown, or a feature is not finite.
                Nothing was changed.
            OtherProcessError: If that is so in another process.
        """
        with agreed(group):
            hashes, chosen, rows = self._checked(ids, classes, features, [True] * len(ids))
        labels = torch.from_numpy(np.stack([hashes.view(np.int64), chosen], axis=1))
        rows = rows.cpu()
        if group is not None:
            labels, rows = gathered(labels, group), gathered(rows, group)
        hashes, chosen = labels[:, 0].numpy().view(np.uint64), labels[:, 1].numpy()
        # An object that came twice in a step has one of its features, the same in any order.
        order = np.lexsort([rows.double().sum(dim=1).numpy(), hashes])
        order = order[occurrence(hashes[order]) == 0]
        hashes, chosen, rows = hashes[order], chosen[order], rows[torch.from_numpy(order)]
        slots, _ = self._slots.occupy(hashes, chosen)
        here = slots >= 0
        where = (torch.from_numpy(one[here]) for one in (chosen, slots))
        kept = rows[torch.from_numpy(here)].to(self._features)
        self._features[tuple(where)] = kept
        self._renew(np.unique(chosen))

    def compare(
        self,
        ids: Sequence[str],
        classes: Tensor | Sequence[int],
        features: Tensor,
        is_real: Tensor | Sequence[bool],
    ) -> Tensor:
        """Return how much units are like the real objects of their class.

        Args:
            ids: Of the units, (n,); a real unit may have the id of a generated one.
            classes: Class index of each, (n,).
            features: (n, width), finite.
            is_real: Whether each is real: its own feature is left out then, (n,).

        Returns:
            float32 (n,) on the device of the prototypes; NaN where the class has no (other) object.

        Raises:
            ValueError: If shapes do not fit, a class is unknown, or a feature is not finite.
        """
        hashes, chosen, rows = self._checked(ids, classes, features, is_real)
        touched, numbers = np.unique(chosen, return_inverse=True)
        centre = self._centre()
        directions = self._directions(touched, centre)
        at = torch.from_numpy(numbers.reshape(-1)).to(rows.device)
        sums = directions.sum(dim=1)[at]
        n = torch.from_numpy((self._slots.seen[chosen] > 0).sum(axis=1)).to(rows.device)
        slots = self._slots.locate(hashes, chosen)
        own = torch.from_numpy(np.flatnonzero(slots >= 0)).to(rows.device)
        sums[own] -= directions[at[own], torch.from_numpy(slots[slots >= 0]).to(rows.device)]
        n[own] -= 1
        cosines = (normalize(rows - centre, dim=1) * normalize(sums, dim=1)).sum(dim=1)
        values = cosines + self._missing(n)
        values[n == 0] = torch.nan
        return values

    def correlation(self) -> float:
        """Return r, the mean cosine of two objects of a class; NaN before a class has shown two."""
        n = (self._slots.seen > 0).sum(axis=1)
        n_pairs = int((n * (n - 1)).sum())
        return float(self._pair_sums.sum()) / n_pairs if n_pairs else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and, as tensors, all that was learnt."""
        return {
            **self._settings(),
            "hashes": torch.from_numpy(self._slots.hashes.view(np.int64).copy()),
            "seen": torch.from_numpy(self._slots.seen.copy()),
            "features": self._features.clone(),
            "sums": self._sums.clone(),
            "pair_sums": self._pair_sums.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, bit for bit.

        Raises:
            StateMismatchError: If it was saved with other settings.
        """
        parts = {"hashes", "seen", "features", "sums", "pair_sums"}
        if missing := parts - set(state):
            raise StateMismatchError(f"the saved state has no {sorted(missing)}")
        expected = self._settings()
        check_settings(state, expected, expected)
        self._slots.hashes = state["hashes"].cpu().numpy().view(np.uint64).copy()
        self._slots.seen = state["seen"].cpu().numpy().copy()
        self._features.copy_(state["features"])
        self._sums.copy_(state["sums"])
        self._pair_sums.copy_(state["pair_sums"])

    def _settings(self) -> dict[str, Any]:
        return {
            "n_classes": self.n_classes,
            "width": self.width,
            "window": self.window,
            "dtype": str(self._features.dtype),
        }

    def _checked(
        self,
        ids: Sequence[str],
        classes: Tensor | Sequence[int],
        features: Tensor,
        is_real: Tensor | Sequence[bool],
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], Tensor]:
        """Return hashes, classes and float32 features on the device of the prototypes."""
        chosen = torch.as_tensor(classes).detach().cpu().to(torch.int64).reshape(-1).numpy()
        real = torch.as_tensor(is_real, dtype=torch.bool).detach().cpu().reshape(-1).numpy()
        if tuple(features.shape) != (len(ids), self.width):
            raise ValueError(
                f"`features` must have the shape {(len(ids), self.width)}, one row per id, got "
                f"{tuple(features.shape)}"
            )
        for what, column in {"classes": chosen, "is_real": real}.items():
            if len(column) != len(ids):
                raise ValueError(f"`ids` has {len(ids)} units, {what} has {len(column)}")
        outside = np.flatnonzero((chosen < 0) | (chosen >= self.n_classes))
        if len(outside):
            raise ValueError(
                f"`classes` must lie in [0, {self.n_classes}), got {chosen[outside[0]]} for "
                f"{ids[outside[0]]!r}"
            )
        rows = features.detach().to(self._sums)
        bad = torch.nonzero(~rows.isfinite().all(dim=1)).flatten().tolist()
        if bad:
            raise ValueError(f"`features` must be finite, got NaN or Inf for {ids[bad[0]]!r}")
        return unit_hashes(ids, real), chosen, rows

    def _renew(self, touched: NDArray[np.int64]) -> None:
        """Bring what is derived from the features of classes up to date."""
        rows = torch.from_numpy(touched).to(self._features.device)
        self._sums[rows] = self._features[rows].float().sum(dim=1)
        sums = self._directions(touched, self._centre()).sum(dim=1).double()
        n = torch.from_numpy((self._slots.seen[touched] > 0).sum(axis=1))
        self._pair_sums[rows.cpu()] = sums.square().sum(dim=1).cpu() - n

    def _centre(self) -> Tensor:
        """Return the mean over classes of their objects' mean feature, (width,)."""
        n = torch.from_numpy((self._slots.seen > 0).sum(axis=1)).to(self._sums.device)
        shown = n > 0
        if not shown.any():
            return torch.zeros_like(self._sums[0])
        centre: Tensor = (self._sums[shown] / n[shown, None]).mean(dim=0)
        return centre

    def _directions(self, touched: NDArray[np.int64], centre: Tensor) -> Tensor:
        """Return the centred features of classes with norm 1, zeros in empty slots."""
        rows = torch.from_numpy(touched).to(self._features.device)
        shown = torch.from_numpy(self._slots.seen[touched] > 0).to(self._features.device)
        directions = normalize(self._features[rows].float() - centre, dim=2)
        return directions * shown[..., None]

    def _missing(self, n: Tensor) -> Tensor:
        """Return what the cosine with the mean of n objects lacks to that of very many."""
        correlation = self.correlation()
        if not correlation > 0:
            return torch.zeros_like(n, dtype=torch.float32)
        r = min(correlation, 1.0)
        missing: Tensor = r**0.5 * (1.0 - (n * r / (1.0 + (n - 1) * r)).sqrt())
        return missing
