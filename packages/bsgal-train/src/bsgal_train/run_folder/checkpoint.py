"""State of a run on disk: written whole or not at all, the newest readable one is resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bsgal_train.errors import OtherModelError
from bsgal_train.run_folder.layout import (
    CHECKPOINT,
    CHECKPOINT_MODEL,
    CHECKPOINT_STATE,
    CHECKPOINT_SUMS,
)

__all__ = ["CheckpointFolder", "Stateful", "StoredParts", "TrainingState", "check_same_model"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24
_DAMAGED = (OSError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps done.
        position: position in the stream of training samples of the next one.
        model: the detector's state dict.
        states: state dicts of everything else that a step depends on, by name: those of
            `StoredParts`, `steps` (how many were left out), and `hooks`.
    """

    step: int
    position: int
    model: dict[str, Tensor]
    states: dict[str, dict[str, Any]]


class Stateful(Protocol):
    """Something that goes on from a stored state as if there had been no break."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in types that `torch.save` stores without pickling."""

    def load_state_dict(self, state: Any, /) -> object:
        """Go on from what `state_dict` returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredParts:
    """What a checkpoint stores of the objects of a run, each under the name of its field.

    A further field is stored and loaded like the others.

    Attributes:
        optimizer: its moments.
        update: loss scale, and the average of the weights.
        selection: gradient cache, policy and counts of the mode.
        skipped: what could not be read, and how often.
        draws: the weights that instances are drawn by, where training steers them.
    """

    optimizer: Stateful
    update: Stateful
    selection: Stateful
    skipped: Stateful
    draws: Stateful | None = None

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """Return the state of each part, by its name."""
        return {name: part.state_dict() for name, part in self._there()}

    def load_state_dicts(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Have each part go on from what `state_dicts` returned."""
        for name, part in self._there():
            part.load_state_dict(states[name])

    def _there(self) -> list[tuple[str, Stateful]]:
        parts = [(one.name, getattr(self, one.name)) for one in fields(self)]
        return [(name, part) for name, part in parts if part is not None]


class CheckpointFolder:
    """Checkpoints `step-00000250/` of one run; the newest `keep` are kept.

    There is no generator state among them: every random draw of a run is a function of its seed
    and of the step or sample position.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        """Return where the state after `step` steps is, or would be."""
        return self.folder / CHECKPOINT.of(step)

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint under its final name in one move, then drop the oldest.

        Killed at any moment, or without power after the return, this leaves the checkpoint whole
        or not at all.
        """
        target = self.path(state.step)
        temporary = self.folder / f"{target.name}.tmp"
        for leftover in (*self.folder.glob(f"{CHECKPOINT.before}*.tmp"), target):
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        model = {name: value.contiguous() for name, value in state.model.items()}
        save_file(model, temporary / CHECKPOINT_MODEL)
        rest = {"step": state.step, "position": state.position, "states": state.states}
        torch.save(rest, temporary / CHECKPOINT_STATE)
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        text = json.dumps(sums, indent=2) + "\n"
        (temporary / CHECKPOINT_SUMS).write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _flush_to_disk(path)
        temporary.replace(target)
        _flush_to_disk(self.folder)
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old)
        return target

    def load_newest(self, before: int | None = None) -> TrainingState | None:
        """Return the newest state that can be read, or None; damaged ones are named in the log.

        Args:
            before: only states after fewer steps than this.
        """
        for path in self._newest_first():
            if before is not None and path >= self.path(before):
                continue
            try:
                return _load(path)
            except _DAMAGED as error:
                logger.warning("skipped damaged checkpoint %s: %s", path, error)
        return None

    def load(self, step: int) -> TrainingState:
        """Return the state after `step` steps.

        Raises:
            ValueError: it is not there, or damaged.
        """
        path = self.path(step)
        try:
            return _load(path)
        except _DAMAGED as error:
            raise ValueError(
                f"the checkpoint {path} cannot be read ({error}); all processes of a run must see "
                "the same output folder"
            ) from error

    def _newest_first(self) -> list[Path]:
        return CHECKPOINT.paths(self.folder)[::-1]


def check_same_model(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Check that a stored state is of the model at hand.

    Args:
        found: the stored state dict.
        expected: the model's own.
        source: where `found` was stored, for the message.

    Raises:
        OtherModelError: names or shapes differ; some are named.
    """
    differing = [f"{name} is missing" for name in expected if name not in found]
    differing += [f"{name} is unknown" for name in found if name not in expected]
    differing += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if differing:
        listed = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise OtherModelError(
            f"{source} is of another model: {len(differing)} of {len(expected)} tensors differ "
            f"({listed}); train with the detector settings it was made with, or choose another "
            "output folder"
        )


def _load(path: Path) -> TrainingState:
    sums = json.loads((path / CHECKPOINT_SUMS).read_text(encoding="utf-8"))
    for name in (CHECKPOINT_MODEL, CHECKPOINT_STATE):
        if _sha256(path / name) != sums[name]:
            raise ValueError(f"{name} does not have the recorded checksum")
    rest = torch.load(path / CHECKPOINT_STATE, map_location="cpu", weights_only=True)
    return TrainingState(model=load_file(path / CHECKPOINT_MODEL), **rest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
