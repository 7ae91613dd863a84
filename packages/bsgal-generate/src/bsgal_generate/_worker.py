"""What runs inside a worker's process, and how its errors reach the main process."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from ._drawn import BatchArtist, Drawn, Job, PipelineFacts
from ._pipelines import ImagePipeline
from ._plan import Sample
from .errors import WorkerError

Batch = Sequence[Sample]
_T = TypeVar("_T")


class PipelineLoader(Protocol):
    """Loads the pipeline inside a worker, for example `partial(load_pipeline, "FOLDER")`."""

    def __call__(self, *, device: str) -> ImagePipeline:
        """Return the pipeline on a device."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception on its way to another process.

    Attributes:
        pickled: The exception; None if it cannot be pickled.
        text: Its traceback.
    """

    pickled: bytes | None
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Wrap an exception."""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except (TypeError, AttributeError, pickle.PicklingError):
            return cls(None, text)
        return cls(pickled, text)

    def throw(self, place: str) -> NoReturn:
        """Raise the exception here, with the worker's traceback as its cause."""
        cause = WorkerError(f"the worker on {place} failed:\n{self.text}")
        if self.pickled is None:
            raise cause
        raise pickle.loads(self.pickled) from cause


class Worker:
    """A pipeline that draws the batches it is given.

    Args:
        load: Loads the pipeline.
        device: The device for it.
        job: The settings of the run.
    """

    def __init__(self, load: PipelineLoader, device: str, job: Job) -> None:
        self._load, self._device, self._job = load, device, job
        self._artist: BatchArtist | None = None

    def ready(self) -> PipelineFacts | Failure:
        """Load the pipeline and return what is to be recorded of it."""
        return _caught(self._start)

    def draw(self, batch: Batch) -> list[Drawn] | Failure:
        """Draw a batch; `ready` must have been called."""
        artist = self._artist
        assert artist is not None
        return _caught(lambda: [drawn for piece in artist.draw(batch) for drawn in piece])

    def _start(self) -> PipelineFacts:
        self._artist = BatchArtist(self._load(device=self._device), self._job)
        return self._artist.facts()


def _caught(work: Callable[[], _T]) -> _T | Failure:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the main process's to raise
        return Failure.of(error)
