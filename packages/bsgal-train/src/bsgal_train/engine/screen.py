"""Screen a pool: look at every instance before any is trained on, and write what speaks for it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from bsgal_score import EvidenceTable
from bsgal_train.annotations.paths import DataPaths
from bsgal_train.engine.assembly import Assembly, assemble
from bsgal_train.engine.looking import Looking
from bsgal_train.engine.progress import Progress
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe, SelectionConfig
from bsgal_train.run_folder.layout import settings_that_count, written_whole
from bsgal_train.run_folder.provenance import describe_inputs
from bsgal_train.selection.evidence import InstanceEvidence
from bsgal_train.selection.scoring.real_gradient import classifiers

__all__ = ["screen"]

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0

_DAMAGED = (
    AttributeError, EOFError, LookupError, RuntimeError, TypeError, UnpicklingError, ValueError
)  # fmt: skip
"""What reading a file raises that is not whole."""


def screen(
    recipe: Recipe,
    out: str | Path,
    *,
    n_looks: int,
    alpha: float = 0.1,
    progress: Progress | None = None,
) -> EvidenceTable:
    """Look at every instance of the recipe's pool, or go on where an earlier start stopped.

    Forward passes only, of the detector that the recipe starts from. With any number of processes
    and loader processes the table is the same.

    Args:
        recipe: its data, detector and paste settings count, its seed, and how it judges if its
            mode is `instance` by evidence.
        out: the parquet file to write; beside it, `<out>.partial` is what to go on from.
        n_looks: looks at each instance, at least 1.
        alpha: at most this share of real objects would be rejected, in (0, 1). The mean of several
            looks at a good instance is steadier than what a run judges by, of which one look or two
            have to be enough: so it can be asked for more than `selection.alpha`.
        progress: told after every round of images.

    Raises:
        ValueError: for bad settings, annotations or pool, no pool, a detector that has learnt
            nothing, an `out` that is there, or the beginning of another screening beside it.
        OSError: if the file cannot be written.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    out = Path(out)
    _check(recipe, out, n_looks)
    config = _evidence_settings(recipe, n_looks, alpha)
    annotations = DataPaths.of(recipe.data).load_training()
    assembly = assemble(_without_training(recipe), annotations)
    assert assembly.pool is not None, "checked above"
    looking = Looking(recipe, assembly, n_looks)
    evidence = InstanceEvidence(
        classifiers(assembly.detector)[0].in_features,
        [one.frequency for one in annotations.categories],
        config,
    )
    beginning = _Beginning(
        out.with_name(f"{out.name}.partial"), _what_decides(recipe, config, assembly, n_looks)
    )
    n_done = beginning.load(evidence)
    saved_s = time.monotonic()
    try:
        for looks in looking.rounds(n_done):
            for of_batch in looks:
                evidence.take(of_batch, is_shared=True)
            n_done += len(looks)
            if time.monotonic() - saved_s > _SAVE_EVERY_S:
                beginning.save(evidence, n_done)
                saved_s = time.monotonic()
            if progress is not None:
                progress(looking.n_images_in(n_done), looking.n_images, "images")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {looking.n_images_in(n_done)} of {looking.n_images} images; the same "
            f"command goes on from {beginning.path}"
        ) from None
    pool = assembly.pool
    table = evidence.table([pool.instance_id(position) for position in range(len(pool))])
    if processes.rank() == 0:
        table.to_parquet(out)
        beginning.path.unlink(missing_ok=True)
    return table


def _check(recipe: Recipe, out: Path, n_looks: int) -> None:
    if n_looks < 1:
        raise ValueError(f"there must be at least 1 look at each instance, got {n_looks}")
    if not recipe.paste.pool:
        raise ValueError("there is no pool to look at: set paste.pool, or name it with --pool")
    if recipe.detector.init == "random":
        raise ValueError(
            "a detector from random weights sees nothing: name the output folder of a run instead "
            "of a recipe, or set detector.init"
        )
    if out.exists():
        raise ValueError(f"{out} is there already; delete it, or name another file")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}, where {out.name} is to go, is no folder")


def _without_training(recipe: Recipe) -> Recipe:
    """Return a recipe that pastes everything, and that any number of processes can share."""
    return dataclasses.replace(
        recipe,
        selection=SelectionConfig(mode="paste_all"),
        schedule=dataclasses.replace(
            recipe.schedule, batch_size=processes.n_processes(), n_accumulate=1
        ),
    )


def _evidence_settings(recipe: Recipe, n_looks: int, alpha: float) -> SelectionConfig:
    """Return how looks are judged: as the recipe does, or by default if it judges otherwise."""
    own = recipe.selection
    config = own if own.effective_reference == "evidence" else SelectionConfig(mode="instance")
    return dataclasses.replace(
        config,
        # An opened table is no look at anything.
        evidence="",
        min_looks=min(config.min_looks, n_looks),
        alpha=alpha,
    )


def _what_decides(
    recipe: Recipe, config: SelectionConfig, assembly: Assembly, n_looks: int
) -> dict[str, Any]:
    """Return what the numbers of a screening depend on, by what it is called."""
    settings = {
        name: value
        for name, value in settings_that_count(recipe).items()
        if name.startswith(("data.", "detector.", "paste.")) or name == "schedule.seed"
    }
    inputs = describe_inputs(assembly.annotations, assembly.annotations_sha256, None, assembly.pool)
    return settings | {
        "training annotations": inputs["training"],
        "pool": inputs["pool"],
        "weights of the detector": _sha256(assembly.detector),
        "number of looks": n_looks,
        "selection.sources": list(config.sources),
        "selection.max_looks": config.max_looks,
    }


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What has been seen so far, on disk, whole or not at all.

    Attributes:
        path: of the file.
        of: what decides the numbers, by what it is called.
    """

    path: Path
    of: dict[str, Any]

    def save(self, evidence: InstanceEvidence, n_batches: int) -> None:
        """Write it in the first process; the others hold the same."""
        if processes.rank() != 0:
            return
        state = {"of": self.of, "n_batches": n_batches, "evidence": evidence.state_dict()}
        with written_whole(self.path) as temporary:
            torch.save(state, temporary)

    def load(self, evidence: InstanceEvidence) -> int:
        """Return how many batches were looked at, and go on from what was seen in them."""
        state = processes.broadcast(self._read() if processes.rank() == 0 else None)
        if state is None:
            return 0
        differing = [name for name, value in self.of.items() if state["of"].get(name) != value]
        if differing:
            raise ValueError(
                f"{self.path} is the beginning of another screening; what differs: "
                f"{', '.join(differing)}; delete it, or name another file to write"
            )
        evidence.load_state_dict(state["evidence"])
        logger.info("going on after %d batches of images", state["n_batches"])
        return int(state["n_batches"])

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        # A disk that fails, or too little memory, is no reason to throw away what was seen.
        except _DAMAGED as error:
            raise ValueError(
                f"{self.path}, from which to go on, cannot be read ({error}); delete it to begin "
                "anew"
            ) from error
        return state


def _sha256(detector: nn.Module) -> str:
    """Return a hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(detector.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
