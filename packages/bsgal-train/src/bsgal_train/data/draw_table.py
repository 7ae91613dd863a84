"""Weights of a pool's instances, published by training and read by its loader processes."""

from __future__ import annotations

import multiprocessing
import time
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from bsgal_train.errors import DrawTableError
from bsgal_train.processes import group as processes

__all__ = ["DrawTable"]

Weights = npt.NDArray[np.float32]

# Version k is in slot k % 2, so it takes the place of version k - 2.
_N_SLOTS = 2
_UNPUBLISHED = -1
_POLL_S = 0.01


class DrawTable:
    """Keep the published weights by which instances are drawn, in memory that processes share.

    Version 0 are the initial weights, version k those published after step k * `publish_every`.
    A sample of a step in the period after version k, of `publish_every` steps, is drawn by version
    k - 1 (0 in the first two): by one that was published a whole period before. So what is drawn is
    a function of the position and the published weights, whichever process draws it, and loader
    processes can work ahead: no one has to wait if `publish_every` is at least the number of
    batches loaded ahead, two for each loader process. Where it is less they wait for the version,
    which always comes, since batches are delivered in order; one that still waits when a run ends
    holds its end up for five seconds.

    Version k is published when all samples of the steps up to k * `publish_every` have been
    delivered, and no later one needs version k - 2, which it replaces. A reader that needs a
    replaced version all the same gets an error, never other weights.

    Where a run has several processes, all of them make a table and publish in it, equal weights.

    Args:
        n_instances: Number of instances of the pool.
        batch_size: Samples of a step, of all processes together.
        publish_every: Steps from one version to the next.
        initial: Weights of version 0, `(n_instances,)`; None: all 1.
        timeout_s: How long a loader process waits for a version. It must cover what training does
            between two steps, such as an evaluation.

    Raises:
        ValueError: A number is below 1, or the weights are not one finite number of at least 0 per
            instance.
        DrawTableError: The processes of the run have different weights.
    """

    def __init__(
        self,
        n_instances: int,
        *,
        batch_size: int,
        publish_every: int,
        initial: npt.ArrayLike | None = None,
        timeout_s: float = 3600.0,
    ) -> None:
        numbers = {
            "n_instances": n_instances, "batch_size": batch_size, "publish_every": publish_every
        }  # fmt: skip
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}")
        self.n_instances = n_instances
        self.publish_every = publish_every
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._weights = _shared(torch.zeros(_N_SLOTS, n_instances))
        # Of each slot, its version and a checksum of version and weights.
        self._labels = _shared(torch.full((_N_SLOTS, 2), _UNPUBLISHED))
        self._current: Weights | None = None
        self._current_version = _UNPUBLISHED
        self._write(0, self._checked(np.ones(n_instances) if initial is None else initial))

    @property
    def latest(self) -> int:
        """Give the number of the newest published version."""
        return int(self._labels[:, 0].max())

    def version_at(self, position: int) -> int:
        """Give the version that the sample at a position of the run is drawn by."""
        return max(0, position // (self._batch_size * self.publish_every) - 1)

    def go_to(self, position: int) -> None:
        """Let `current` give the weights for the sample at a position, waiting for them if need be.

        Raises:
            DrawTableError: They are not there: not yet after the longest wait, or no more.
        """
        version = self.version_at(position)
        if version == self._current_version:
            return
        self._current = self._wait_for(version)
        self._current_version = version

    def current(self) -> Weights:
        """Give the weights where `go_to` went, `(n_instances,)`: the same array for one version.

        Raises:
            DrawTableError: `go_to` has not been called.
        """
        if self._current is None:
            raise DrawTableError("call `go_to(position)` first: the weights depend on the position")
        return self._current

    def publish(self, step: int, weights: npt.ArrayLike) -> None:
        """Publish the next version, after every `publish_every`-th step, before a checkpoint of it.

        Args:
            step: Steps that are done.
            weights: `(n_instances,)`, of at least 0; kept as float32.

        Raises:
            ValueError: The weights are not one finite number of at least 0 per instance.
            DrawTableError: A version was left out or is published twice, or the processes of the
                run have different weights.
        """
        version = self.latest + 1
        if step != version * self.publish_every:
            raise DrawTableError(
                f"version {version} of the draw table must be published after step "
                f"{version * self.publish_every}, got step {step}; publish after every "
                f"{self.publish_every} steps, also where the weights are what they were"
            )
        self._write(version, self._checked(weights))

    def state_dict(self) -> dict[str, Any]:
        """Return the versions that samples of later steps are drawn by."""
        return {
            "publish_every": self.publish_every,
            "labels": self._labels.clone(),
            "weights": self._weights.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; before samples are loaded.

        Raises:
            ValueError: It is the state of another pool or another `publish_every`.
        """
        own = (self.publish_every, self.n_instances)
        stored = (state["publish_every"], state["weights"].shape[1])
        if own != stored:
            raise ValueError(
                "the stored draw table has (publish_every, n_instances) = "
                f"{stored}, this run {own}; go on with the pool and settings of the run's start"
            )
        self._weights.copy_(state["weights"])
        self._labels.copy_(state["labels"])
        self._current_version = _UNPUBLISHED

    def _checked(self, weights: npt.ArrayLike) -> Weights:
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(weights, dtype=np.float32)
        if values.shape != (self.n_instances,):
            raise ValueError(
                f"`weights` must be of shape ({self.n_instances},), one per instance of the pool, "
                f"got {values.shape}"
            )
        if not (np.isfinite(values).all() and values.min() >= 0):
            raise ValueError("`weights` must be finite in float32 and at least 0")
        return values

    def _write(self, version: int, weights: Weights) -> None:
        slot, checksum = version % _N_SLOTS, _checksum(version, weights)
        if any(other != checksum for (other,) in processes.gather([checksum])):
            raise DrawTableError(
                f"the processes of this run have different weights for version {version} of the "
                "draw table; make them from what all processes have found out together"
            )
        self._weights[slot].copy_(torch.from_numpy(weights))
        self._labels[slot] = torch.tensor([version, checksum])

    def _wait_for(self, version: int) -> Weights:
        began = time.monotonic()
        is_loader = torch.utils.data.get_worker_info() is not None
        training = multiprocessing.parent_process()
        while (weights := self._read(version)) is None:
            # Without loader processes the one that would publish is the one that would wait.
            if not is_loader:
                raise DrawTableError(f"{self._lacks(version)}; `publish` was not called after it")
            if training is not None and not training.is_alive():
                raise DrawTableError(f"{self._lacks(version)}, and the training process has ended")
            if time.monotonic() - began > self._timeout_s:
                raise DrawTableError(
                    f"{self._lacks(version)}; a loader process has waited {self._timeout_s:g} s "
                    "for it: training has stopped or does not call `publish`, or `timeout_s` is "
                    "shorter than what it does between two steps"
                )
            time.sleep(_POLL_S)
        return weights

    def _read(self, version: int) -> Weights | None:
        """Return a copy of a version, or None if it is not there yet or just being written."""
        slot = version % _N_SLOTS
        stored, checksum = self._labels[slot].tolist()
        if stored > version:
            raise DrawTableError(
                f"version {version} of the draw table has been replaced by version {stored}: these "
                "samples are of steps that are done; start a new loader at the run's position"
            )
        if stored < version:
            return None
        weights: Weights = self._weights[slot].numpy().copy()
        # The checksum tells a whole version, in whatever order the writes become visible here.
        if checksum != _checksum(version, weights):
            return None
        weights.setflags(write=False)
        return weights

    def _lacks(self, version: int) -> str:
        return (
            f"version {version} of the draw table, due after step {version * self.publish_every}, "
            "is not published"
        )


def _checksum(version: int, weights: Weights) -> int:
    return zlib.crc32(weights.data, version)


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    shared: torch.Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call] # in PyTorch
    return shared
