"""Every file name in a run's folder, how its files are written, and what differs between two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsgal_train.recipe import Recipe

__all__ = [
    "CHECKPOINT",
    "CHECKPOINT_MODEL",
    "CHECKPOINT_STATE",
    "CHECKPOINT_SUMS",
    "DECISIONS_PART",
    "RunFolder",
    "StepName",
    "differing",
    "differing_settings",
    "read_json",
    "settings_that_count",
    "write_json",
    "write_text",
    "written_whole",
]


@dataclass(frozen=True, slots=True)
class StepName:
    """Names of what is kept once per step, such as `step-00000250`.

    Attributes:
        before: the number.
        after: the number.
    """

    before: str
    after: str = ""

    def of(self, step: int) -> str:
        """Return the name for a step."""
        return f"{self.before}{step:08d}{self.after}"

    def step(self, name: str) -> int | None:
        """Return the step that a name is for, None where it is no such name."""
        found = re.fullmatch(f"{re.escape(self.before)}(\\d{{8}}){re.escape(self.after)}", name)
        return None if found is None else int(found[1])

    def paths(self, folder: Path) -> list[Path]:
        """Return what is in a folder by such a name, first step first; none without a folder."""
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if self.step(path.name) is not None)


CHECKPOINT = StepName("step-")
CHECKPOINT_MODEL = "model.safetensors"
CHECKPOINT_STATE = "state.pt"
CHECKPOINT_SUMS = "sha256.json"
DECISIONS_PART = StepName("part-", ".parquet")
_PREDICTIONS = StepName("predictions-")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything that a run leaves is.

    Attributes:
        root: output folder of the run.
    """

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved settings."""
        return self.root / "recipe.json"

    @property
    def provenance(self) -> Path:
        """Hashes of data and pool, and versions."""
        return self.root / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """A folder for each of the newest states."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Numbers over the steps, as JSON lines."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same numbers as event files."""
        return self.root / "tensorboard"

    @property
    def decisions(self) -> Path:
        """A folder of Parquet parts with a row per judged instance."""
        return self.root / "decisions"

    @property
    def nonfinite(self) -> Path:
        """A file for each step that diverged, and each process."""
        return self.root / "nonfinite"

    def divergence(self, step: int, process: int) -> Path:
        """Return where a process tells of a step that diverged."""
        return self.nonfinite / f"step-{step:08d}-process-{process}.json"

    def divergences(self) -> list[Path]:
        """Return what is told of steps that diverged, by step and process."""
        return sorted(self.nonfinite.glob("step-*-process-*.json"))

    @property
    def detector(self) -> Path:
        """The trained weights."""
        return self.root / "detector.safetensors"

    @property
    def detector_description(self) -> Path:
        """What the trained detector is, and its categories."""
        return self.root / "detector.json"

    @property
    def predictions(self) -> Path:
        """A folder with a shard of detections per process."""
        return self.root / "predictions"

    def predictions_on_the_way(self, step: int) -> Path:
        """Return where detections of an evaluation after a step are, while it lasts."""
        return self.root / _PREDICTIONS.of(step)

    @property
    def results(self) -> Path:
        """What came of the run."""
        return self.root / "results.json"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.root / "report.html"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the block a path to write to, which gets its own name at the end of the block.

    Killed at any moment, this leaves the file whole, as it was before, or not at all.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None where there is no file.

    Raises:
        ValueError: It holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def differing(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two nested mappings, by dotted key; what is missing is None."""
    one, other = _flat(a or {}), _flat(b or {})
    return {
        key: (one.get(key), other.get(key))
        for key in (*one, *(key for key in other if key not in one))
        if one.get(key) != other.get(key)
    }


# Settings that may differ between the starts of one run: they change no number.
_FREE_SETTINGS = (
    "data.n_workers",
    "schedule.log_every",
    "checkpoint.every",
    "checkpoint.keep",
)


def differing_settings(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the settings that change results and differ between two recipes, by dotted key."""
    return differing(settings_that_count(a), settings_that_count(b))


def settings_that_count(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that change results, by dotted key in alphabetical order."""
    settings = sorted(_flat(recipe.to_dict()).items())
    return {key: value for key, value in settings if key not in _FREE_SETTINGS}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
