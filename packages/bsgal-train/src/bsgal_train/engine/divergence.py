"""What a step that diverged leaves in a run's `nonfinite/`, one file per process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bsgal_train.data import TrainingSample
from bsgal_train.engine.step import DivergedError, step_seed
from bsgal_train.processes import group as processes
from bsgal_train.recipe import Recipe
from bsgal_train.run_folder.decision_log import Decision
from bsgal_train.run_folder.layout import RunFolder, write_json

__all__ = [
    "SCHEMA",
    "Divergence",
    "SampleContents",
    "fit_for_json",
    "read_divergences",
    "save_divergence",
]

SCHEMA = "bsgal.nonfinite/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleContents:
    """Name what a training sample is made of.

    Attributes:
        position: Number of the sample in the run.
        image_id: As in the annotation file.
        file_name: Of the image.
        instance_ids: Of the pasted instances, as in the pool.
    """

    position: int
    image_id: int
    file_name: str
    instance_ids: tuple[str, ...]

    @classmethod
    def of(cls, sample: TrainingSample) -> SampleContents:
        """Name the contents of a sample."""
        return cls(
            position=sample.position,
            image_id=sample.original.image_id,
            file_name=sample.original.file_name,
            instance_ids=tuple(paste.instance_id for paste in sample.pastes),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """One process's view of a step whose losses or gradients were not finite.

    All sampling in a step follows from its seed; torch's global state is kept for what does not.

    Attributes:
        step: Its number, from 1.
        seed: Of everything drawn in it.
        message: Of the error.
        process: Number of the process.
        n_processes: How many there were.
        n_threads: Threads of torch; sums of floats depend on them.
        losses: That were computed; means over the parts of the step.
        decisions: That were made.
        samples: What the process had of the batch.
        torch_random_state: Hexadecimal bytes.
        recipe: The run's, as `Recipe.to_dict` gives it.
    """

    step: int
    seed: int
    message: str
    process: int
    n_processes: int
    n_threads: int
    losses: Mapping[str, float]
    decisions: tuple[Decision, ...]
    samples: tuple[SampleContents, ...]
    torch_random_state: str
    recipe: dict[str, dict[str, Any]]


def save_divergence(
    folder: Path,
    recipe: Recipe,
    step: int,
    samples: Sequence[TrainingSample],
    error: DivergedError,
) -> Path:
    """Write this process's file into the run's folder, atomically, and return its path."""
    found = Divergence(
        step=step,
        seed=step_seed(recipe.schedule.seed, step),
        message=str(error),
        process=processes.rank(),
        n_processes=processes.n_processes(),
        n_threads=torch.get_num_threads(),
        losses=error.outcome.losses,
        decisions=error.outcome.decisions,
        samples=tuple(SampleContents.of(sample) for sample in samples),
        torch_random_state=bytes(torch.get_rng_state().tolist()).hex(),
        recipe=recipe.to_dict(),
    )
    path = RunFolder(folder).divergence(step, found.process)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, fit_for_json({"schema": SCHEMA, **asdict(found)}), indent=1)
    return path


def read_divergences(folder: Path) -> list[Divergence]:
    """Return what diverged steps left in a run's folder, by step and process.

    Raises:
        ValueError: A file is damaged, or of another version of this package.
    """
    return [_read(path) for path in RunFolder(folder).divergences()]


def _read(path: Path) -> Divergence:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        content["losses"] = {name: float(value) for name, value in content["losses"].items()}
        content["decisions"] = tuple(
            Decision(**{name: _number(value) for name, value in one.items()})
            for one in content["decisions"]
        )
        content["samples"] = tuple(
            SampleContents(**{**one, "instance_ids": tuple(one["instance_ids"])})
            for one in content["samples"]
        )
        return Divergence(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a step: {error}") from error


def fit_for_json(value: Any) -> Any:
    """Return a nested value with the numbers that JSON does not have, such as nan, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: fit_for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [fit_for_json(one) for one in value]
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
