"""Sketches: small vectors whose inner products estimate those of gradients."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from ._file_lock import locked
from ._types import Implementation
from .errors import GradientMismatchError, StateMismatchError


class CountSketch:
    """A seeded linear map from gradients to `width` numbers that keeps inner products on average.

    Every element gets a sign and a bucket from a hash; a bucket is the signed sum of its elements.
    For gradients x and y, E⟨Sx, Sy⟩ = ⟨x, y⟩ over seeds, with a variance of at most
    (‖x‖²‖y‖² + ⟨x, y⟩²) / width. No matrix is stored.

    Args:
        named_parameters: The parameters, in order: the layout that all sketches share.
        width: Length of a sketch; a power of two, at least 32.
        seed: Chooses the map; non-negative.
        impl: Implementation, as in `bsgal_score.ops`.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        width: int,
        seed: int,
        impl: Implementation = "auto",
    ) -> None:
        if width < 32 or width & (width - 1):
            raise ValueError(f"`width` must be a power of two of at least 32, got {width}")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed}")
        self.shapes = {name: tuple(p.shape) for name, p in named_parameters if p.numel()}
        if not self.shapes:
            raise ValueError("`named_parameters` holds no elements")
        self.width, self.seed = width, seed
        self.impl: Implementation = impl

    @property
    def fingerprint(self) -> str:
        """A hash of everything that two comparable sketches must share."""
        layout = json.dumps([self.width, self.seed, list(self.shapes.items())])
        return hashlib.sha256(layout.encode()).hexdigest()

    def sketch(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """Return the sketch (width,) of gradients by name, float32; missing ones count as zeros.

        Raises:
            GradientMismatchError: If a name is unknown, a shape differs or nothing is given.
        """
        self.check_layout({name: None if g is None else g.shape for name, g in gradients.items()})
        tensors = [gradients.get(name) for name in self.shapes]
        if all(tensor is None for tensor in tensors):
            raise GradientMismatchError("there is no gradient to sketch")
        numels = [math.prod(shape) for shape in self.shapes.values()]
        found = ops.sketch(tensors, numels, width=self.width, seed=self.seed, impl=self.impl)
        return found.float()

    def check_layout(self, shapes: Mapping[str, Sequence[int] | None]) -> None:
        """Check that tensors of these names and shapes are part of the sketch; None is any shape.

        Raises:
            GradientMismatchError: Naming the first one that is not.
        """
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise GradientMismatchError(f"gradient {name!r} is not part of this sketch")
            if shape is not None and tuple(shape) != self.shapes[name]:
                raise GradientMismatchError(
                    f"the gradient of {name!r} must have shape {self.shapes[name]}, got "
                    f"{tuple(shape)}"
                )

    def error_bound(self, norm_x: float, norm_y: float, probability: float = 0.05) -> float:
        """Return what |⟨Sx, Sy⟩ - ⟨x, y⟩| exceeds with at most this probability (Chebyshev)."""
        if not 0 < probability < 1:
            raise ValueError(f"`probability` must lie in (0, 1), got {probability}")
        return math.sqrt(2 / (self.width * probability)) * norm_x * norm_y


class SketchStore:
    """A growing file of sketched gradients with their ids, to score again against any cache.

    A sketch is there once its line in `ids.jsonl` is whole. Opening changes nothing. Several
    processes may append to a folder, one at a time under a lock, and whoever appends first cuts off
    what a killed process left behind.

    Args:
        folder: Made if missing; holds `meta.json`, `ids.jsonl`, `sketches.f32` and `lock`.
        sketcher: What made the sketches, and will make those they are compared with.

    Raises:
        StateMismatchError: If the folder belongs to another sketcher, or is damaged.
    """

    def __init__(self, folder: str | Path, sketcher: CountSketch) -> None:
        self.folder = Path(folder)
        self.sketcher = sketcher
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ids_path = self.folder / "ids.jsonl"
        self._rows_path = self.folder / "sketches.f32"
        self._row_bytes = 4 * sketcher.width
        self._check_meta()
        self.ids: list[str] = []
        self._n_id_bytes = 0
        self._read_ids()

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, unit_id: str, sketch: Tensor) -> None:
        """Add one sketch (width,) under an id, and see what others have appended before it.

        Raises:
            ValueError: If the sketch has another shape or holds NaN or Inf.
            StateMismatchError: If the folder is damaged.
        """
        if sketch.shape != (self.sketcher.width,) or not bool(sketch.isfinite().all()):
            raise ValueError(
                f"`sketch` must be finite and of shape ({self.sketcher.width},), got "
                f"{tuple(sketch.shape)}"
            )
        line = (json.dumps(unit_id) + "\n").encode()
        with self._locked():
            self._catch_up()
            with self._rows_path.open("ab") as file:
                file.write(sketch.detach().float().cpu().numpy().astype("<f4").tobytes())
                file.flush()
                os.fsync(file.fileno())
            with self._ids_path.open("ab") as file:
                file.write(line)
                file.flush()
            self.ids.append(unit_id)
            self._n_id_bytes += len(line)

    def dots(self, sketch: Tensor) -> Tensor:
        """Estimate the dot product of every stored gradient with the one behind `sketch`.

        Returns:
            float64 (len(self),), in the order of `ids`.
        """
        if not self.ids:
            return torch.zeros(0, dtype=torch.float64)
        shape = (len(self.ids), self.sketcher.width)
        rows = np.memmap(self._rows_path, dtype="<f4", mode="r", shape=shape)
        query = sketch.detach().double().cpu().numpy()
        found = [rows[i : i + 1024].astype(np.float64) @ query for i in range(0, shape[0], 1024)]
        return torch.from_numpy(np.concatenate(found))

    def _check_meta(self) -> None:
        path = self.folder / "meta.json"
        meta = {"schema": "bsgal.sketch_store/1", "fingerprint": self.sketcher.fingerprint}
        if not path.exists():
            with self._locked():
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps(meta))
                temporary.replace(path)
        if (found := _parsed(path.read_bytes(), str(path))) != meta:
            raise StateMismatchError(
                f"{path} belongs to other sketches: expected {meta}, found {found}; parameters, "
                "width and seed must be the same"
            )

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / "lock")

    def _read_ids(self) -> None:
        """See the ids with whole lines and rows; an id is written after its row."""
        if not self._ids_path.exists() or not self._rows_path.exists():
            return
        lines = self._ids_path.read_bytes().splitlines(keepends=True)
        n_rows = self._rows_path.stat().st_size // self._row_bytes
        whole = [line for line in lines if line.endswith(b"\n")][:n_rows]
        self.ids = [
            _parsed(line, f"{self._ids_path}, line {number}")
            for number, line in enumerate(whole, start=1)
        ]
        self._n_id_bytes = sum(map(len, whole))

    def _catch_up(self) -> None:
        """See what others have appended, and cut both files to their common whole entries."""
        files = (self._ids_path, self._rows_path)
        for path in files:
            path.touch()
        if [path.stat().st_size for path in files] == self._whole_sizes():
            return
        self._read_ids()
        for path, size in zip(files, self._whole_sizes(), strict=True):
            os.truncate(path, size)

    def _whole_sizes(self) -> list[int]:
        return [self._n_id_bytes, len(self.ids) * self._row_bytes]


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StateMismatchError(f"{where} is damaged: expected JSON, found {text!r}") from error
