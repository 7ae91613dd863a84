"""Several workers on one list of batches: handed out in turn, handed back in order, none lost."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ._drawn import Drawn, Job, PipelineFacts
from ._meta import first_difference
from ._worker import Batch, Failure, PipelineLoader
from .errors import WorkerError

logger = logging.getLogger(__name__)

# A worker has its next batch at hand when it is done with one.
_BATCHES_PER_WORKER = 2
# How far the others may run ahead of the slowest one; bounds the images that wait in memory.
_WINDOW_PER_WORKER = 4
_MOST_TRIES = 3

_Numbered = tuple[int, Batch]


@dataclass(frozen=True, slots=True)
class Event:
    """What a worker did: it answered, or it is gone.

    Attributes:
        worker: Its number.
        reply: The answer; None if it is gone.
        ending: How it ended, as in "was killed"; empty if it is there.
    """

    worker: int
    reply: PipelineFacts | list[Drawn] | Failure | None
    ending: str = ""


class Workers(ABC):
    """Draws batches with several workers, each a process with a pipeline of its own.

    Only the main process writes, and it gets the batches back in the order in which they were
    handed out, so the manifest does not depend on the workers. A worker that is gone without an
    answer (killed, out of memory, its machine lost) is replaced and its batches are drawn again; a
    batch during which three of them went is an error, and so are three vain starts of one.
    """

    def __init__(self, load: PipelineLoader, places: Sequence[str]) -> None:
        if not places:
            raise ValueError("there must be at least one worker")
        self._load = load
        self._places = tuple(places)
        self._in_hand: tuple[deque[_Numbered], ...] = ()
        self._is_ready: list[bool] = []
        self._n_failed_starts: Counter[int] = Counter()
        self._facts: PipelineFacts | None = None

    def __len__(self) -> int:
        return len(self._places)

    def open(self, job: Job) -> PipelineFacts:
        """Start all workers; return what is to be recorded of their pipelines.

        The first one that is ready is enough to begin; the others join in when they are.

        Raises:
            WorkerError: A worker ended three times while it loaded, or their pipelines differ.
        """
        self._in_hand = tuple(deque() for _ in self._places)
        self._is_ready = [False] * len(self)
        self._n_failed_starts.clear()
        self._facts = None
        self._prepare(job)
        for worker in range(len(self)):
            self._start(worker)
        while not any(self._is_ready):
            self._note_start(self._wait())
        assert self._facts is not None
        return self._facts

    def draw(self, batches: Iterable[Batch]) -> Iterator[list[Drawn]]:
        """Yield what was drawn, batch by batch, in the order of the batches.

        Raises:
            WorkerError: Three workers ended during the same batch.
        """
        queue = _Queue(batches)
        finished: dict[int, list[Drawn]] = {}
        tries: Counter[int] = Counter()
        n_yielded = 0
        while True:
            self._hand_out(queue, n_yielded + _WINDOW_PER_WORKER * len(self))
            if not any(self._in_hand) and not queue.returned:
                return
            event = self._wait()
            if isinstance(event.reply, list):
                index, _ = self._in_hand[event.worker].popleft()
                finished[index] = event.reply
                # Before the caller stores anything, so that no worker waits for the disk.
                self._hand_out(queue, n_yielded + _WINDOW_PER_WORKER * len(self))
            elif event.reply is None and self._is_ready[event.worker]:
                self._take_back(event, queue, tries)
            else:
                self._note_start(event)
            while n_yielded in finished:
                yield finished.pop(n_yielded)
                n_yielded += 1

    def _hand_out(self, queue: _Queue, end: int) -> None:
        """Give every worker its next batches, up to batch number `end`."""
        for n_in_hand in range(_BATCHES_PER_WORKER):
            for worker, in_hand in enumerate(self._in_hand):
                if self._is_ready[worker] and len(in_hand) <= n_in_hand:
                    item = queue.take(end)
                    if item is None:
                        return
                    in_hand.append(item)
                    self._send(worker, item[1])

    def _take_back(self, event: Event, queue: _Queue, tries: Counter[int]) -> None:
        """Replace a worker that is gone; its batches are the next to be handed out."""
        place, lost = self._places[event.worker], self._in_hand[event.worker]
        if lost:
            index, batch = lost[0]
            tries[index] += 1
            if tries[index] == _MOST_TRIES:
                raise WorkerError(
                    f"{_MOST_TRIES} workers ended while they drew the batch that begins with "
                    f"sample {batch[0].sample_id}; the last, {place}, {event.ending}"
                )
        logger.warning("the worker %s %s; another one takes its place", place, event.ending)
        queue.returned.extendleft(reversed(lost))
        lost.clear()
        self._is_ready[event.worker] = False
        self._start(event.worker)

    def _note_start(self, event: Event) -> None:
        """Note that a worker is ready, or start it again; raise if it cannot be made ready."""
        worker, place = event.worker, self._places[event.worker]
        if isinstance(event.reply, Failure):
            event.reply.throw(place)
        if not isinstance(event.reply, PipelineFacts):
            self._n_failed_starts[worker] += 1
            if self._n_failed_starts[worker] == _MOST_TRIES:
                raise WorkerError(
                    f"the worker {place} ended {_MOST_TRIES} times while it loaded the pipeline; "
                    f"the last time it {event.ending}"
                )
            logger.warning("the worker %s %s while it loaded; trying again", place, event.ending)
            self._start(worker)
            return
        if self._facts is None:
            self._facts = event.reply
        if difference := first_difference(_comparable(self._facts), _comparable(event.reply)):
            raise WorkerError(f"the worker {place} differs from the first one: {difference}")
        self._n_failed_starts[worker] = 0
        self._is_ready[worker] = True

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    @abstractmethod
    def _prepare(self, job: Job) -> None:
        """Take the job for the workers that are started from now on."""

    @abstractmethod
    def _start(self, worker: int) -> None:
        """Start a worker, or the successor of one that is gone; its facts come by `_wait`."""

    @abstractmethod
    def _send(self, worker: int, batch: Batch) -> None:
        """Give a worker a batch; what it drew comes by `_wait`."""

    @abstractmethod
    def _wait(self) -> Event:
        """Wait until a worker answers or is gone; a worker's answers come in order."""


class _Queue:
    """Batches still to be drawn: those that came back from a lost worker, then new ones."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.returned: deque[_Numbered] = deque()
        self._new = enumerate(batches)
        self._n_taken = 0

    def take(self, end: int) -> _Numbered | None:
        """Return the next batch, None if there is none before number `end`."""
        if self.returned:
            return self.returned.popleft()
        item = next(self._new, None) if self._n_taken < end else None
        self._n_taken += item is not None
        return item


def _comparable(facts: PipelineFacts) -> dict[str, Any]:
    return {name: value for name, value in asdict(facts).items() if name != "device"}
