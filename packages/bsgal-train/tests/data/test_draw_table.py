from __future__ import annotations

import itertools
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_all_start_methods

import numpy as np
import pytest
import torch
import torch.utils.data

from bsgal_paste import CategoryBalancedSampler, CopyPaste, UniformScale
from bsgal_train.data import (
    DrawTable,
    RandomCrop,
    RepeatFactorSampler,
    TrainingMapper,
    build_train_loader,
    loaders,
)
from bsgal_train.errors import DrawTableError

N_INSTANCES, BATCH_SIZE = 50, 2


def table(publish_every: int = 3, **options) -> DrawTable:
    return DrawTable(N_INSTANCES, batch_size=BATCH_SIZE, publish_every=publish_every, **options)


def weights(version: int) -> np.ndarray:
    return np.random.default_rng(version).random(N_INSTANCES).astype(np.float32)


class Draws(torch.utils.data.Dataset):
    """Give the weights that the sample at a position is drawn by."""

    def __init__(self, draws: DrawTable) -> None:
        self.draws = draws

    def __getitem__(self, position: int) -> tuple[int, bytes]:
        self.draws.go_to(position)
        return position, self.draws.current().tobytes()


def batches(draws: DrawTable, n_workers: int, start: int = 0, **options) -> Iterator[list]:
    """Load batch after batch, as a run does from the step after `start` on."""
    order = (
        list(range(first, first + BATCH_SIZE))
        for first in itertools.count(start * BATCH_SIZE, BATCH_SIZE)
    )
    return iter(
        torch.utils.data.DataLoader(
            Draws(draws), batch_sampler=order, num_workers=n_workers, collate_fn=list, **options
        )
    )


def train(draws: DrawTable, loaded: Iterator[list], first: int, last: int) -> list:
    """Take the steps `first` to `last`, and publish where it is due."""
    seen = []
    for step in range(first, last + 1):
        seen += next(loaded)
        if step % draws.publish_every == 0:
            draws.publish(step, weights(step // draws.publish_every))
    return seen


def expected(n_steps: int, publish_every: int) -> list[tuple[int, bytes]]:
    ones = np.ones(N_INSTANCES, dtype=np.float32).tobytes()
    found = []
    for step in range(1, n_steps + 1):
        # That of the boundary before the last one.
        version = max(0, (step - 1) // publish_every - 1)
        drawn_by = weights(version).tobytes() if version else ones
        found += [((step - 1) * BATCH_SIZE + k, drawn_by) for k in range(BATCH_SIZE)]
    return found


# A period of one step makes three workers wait for every version; of twelve, for none.
@pytest.mark.parametrize("publish_every", [1, 3, 12])
@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_samples_are_drawn_by_the_version_before_the_last_whatever_loads_them(
    n_workers, publish_every
):
    draws = table(publish_every)
    seen = train(draws, batches(draws, n_workers), 1, 40)
    assert seen == expected(40, publish_every)


def mapped(draws: DrawTable, annotations, pool) -> TrainingMapper:
    sampler = CategoryBalancedSampler(pool, count_range=(4, 5), instance_weights=draws.current)
    paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.2, 0.4)))
    crop = RandomCrop(crop_px=48)
    return TrainingMapper(annotations, crop, seed=5, copy_paste=paste, draw_table=draws)


@pytest.mark.parametrize("method", get_all_start_methods())
def test_loader_processes_paste_by_the_table_however_they_are_started(method, annotations, pool):
    """The pool's instances are a of category 3, b and c of 42."""
    draws = DrawTable(3, batch_size=BATCH_SIZE, publish_every=4, initial=[1, 1, 0])
    places = ([(step * BATCH_SIZE + k, 0) for k in range(BATCH_SIZE)] for step in itertools.count())
    loaded = iter(
        torch.utils.data.DataLoader(
            loaders._TrainingSet(mapped(draws, annotations, pool), None),
            batch_sampler=places,
            num_workers=1,
            collate_fn=loaders._as_it_is,
            multiprocessing_context=method,
        )
    )
    drawn = []
    for step in range(1, 17):
        drawn.append({paste.instance_id for sample in next(loaded) for paste in sample.pastes})
        if step % 4 == 0:
            draws.publish(step, [[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]][step // 4 - 1])
    periods = [set.union(*drawn[start : start + 4]) for start in range(0, 16, 4)]
    assert periods == [{"a", "b"}, {"a", "b"}, {"c"}, {"a", "c"}]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_table_of_equal_weights_changes_no_sample(n_workers, annotations, pool):
    def samples(mapper: TrainingMapper, n_workers: int) -> list:
        sampler = RepeatFactorSampler(np.ones(len(annotations.images)), 0)
        loader = build_train_loader(annotations, mapper, sampler, BATCH_SIZE, n_workers)
        return [s.pastes for batch in itertools.islice(loader, 8) for s in batch]

    draws = DrawTable(3, batch_size=BATCH_SIZE, publish_every=20)
    steered = mapped(draws, annotations, pool)
    sampler = CategoryBalancedSampler(pool, count_range=(4, 5))
    paste = CopyPaste(pool, sampler, UniformScale(scale_range=(0.2, 0.4)))
    plain = TrainingMapper(annotations, RandomCrop(crop_px=48), seed=5, copy_paste=paste)
    assert samples(steered, n_workers) == samples(plain, 0)


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 11, 12])
def test_a_run_resumed_after_any_step_draws_the_same(stop, n_workers, tmp_path):
    draws = table(3)
    train(draws, batches(draws, 0), 1, stop)
    torch.save(draws.state_dict(), tmp_path / "state.pt")
    resumed = table(3, initial=weights(99))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    seen = train(resumed, batches(resumed, n_workers, stop), stop + 1, 18)
    assert seen == expected(18, 3)[stop * BATCH_SIZE :]


def test_a_state_does_not_follow_the_table_it_was_taken_from():
    draws = table(1)
    state = draws.state_dict()
    draws.publish(1, weights(1))
    assert (state["labels"][1] == -1).all()
    assert not state["weights"][1].any()


def test_the_initial_weights_can_be_given():
    draws = table(initial=weights(7))
    draws.go_to(0)
    np.testing.assert_array_equal(draws.current(), weights(7))


def test_one_version_is_one_array_that_cannot_be_changed():
    draws = table(2)
    draws.go_to(0)
    first = draws.current()
    draws.go_to(2 * BATCH_SIZE)
    assert draws.current() is first
    assert not first.flags.writeable
    draws.publish(2, weights(1))
    draws.publish(4, weights(2))
    np.testing.assert_array_equal(first, np.ones(N_INSTANCES))
    draws.go_to(4 * BATCH_SIZE)
    assert draws.current() is not first


def test_weights_without_a_position_are_refused():
    with pytest.raises(DrawTableError, match=r"call `go_to\(position\)` first"):
        table().current()


def test_without_loader_processes_a_missing_version_is_an_error_at_once():
    with pytest.raises(DrawTableError, match=r"version 1 .* due after step 3, is not published; "):
        table(3).go_to(6 * BATCH_SIZE)


def test_a_loader_process_says_what_it_has_waited_for():
    draws = table(1, timeout_s=0.2)
    loaded = batches(draws, 1)
    with pytest.raises(DrawTableError, match=r"version 1 .* has waited 0.2 s for it"):
        list(itertools.islice(loaded, 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_loader_process_that_waits_ends_with_its_training_process():
    ended, held = os.pipe()
    child = os.fork()
    if not child:
        # Its loader process waits for version 1, and holds the pipe.
        next(batches(table(1), 1))
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(held)
    os.waitpid(child, 0)
    readable, *_ = select.select([ended], [], [], 60)
    assert readable
    assert os.read(ended, 1) == b""
    os.close(ended)


def test_a_replaced_version_is_an_error_and_never_other_weights():
    draws = table(1)
    for step in range(1, 4):
        draws.publish(step, weights(step))
    with pytest.raises(DrawTableError, match=r"version 0 .* replaced by version 2"):
        draws.go_to(0)
    assert table(1).latest == 0
    assert draws.latest == 3


def test_a_version_that_is_being_written_is_not_read():
    draws = table(1)
    draws.publish(1, weights(1))
    whole = draws._weights[1, -1].item()
    draws._weights[1, -1] = 0.5
    assert draws._read(1) is None
    draws._weights[1, -1] = whole
    np.testing.assert_array_equal(draws._read(1), weights(1))


def test_readers_never_see_a_mixture_of_versions():
    """While versions follow each other as fast as they can, each read is whole or refused."""
    big = 200_000
    draws = DrawTable(big, batch_size=1, publish_every=1)
    for step in range(1, 4):
        draws.publish(step, np.full(big, step))
    stop = threading.Event()

    def publish() -> None:
        for step in itertools.count(4):
            if stop.is_set():
                return
            draws.publish(step, np.full(big, step))

    publisher = threading.Thread(target=publish)
    publisher.start()
    whole = 0
    try:
        until = time.monotonic() + 30
        while whole < 20 and time.monotonic() < until:
            version = draws.latest
            try:
                read = draws._read(version)
            except DrawTableError:
                continue
            if read is not None:
                assert (read == version).all()
                whole += 1
    finally:
        stop.set()
        publisher.join()
    assert whole == 20


def test_versions_are_published_in_their_order():
    draws = table(3)
    with pytest.raises(DrawTableError, match=r"version 1 .* after step 3, got step 2"):
        draws.publish(2, weights(1))
    draws.publish(3, weights(1))
    with pytest.raises(DrawTableError, match=r"version 2 .* after step 6, got step 3"):
        draws.publish(3, weights(1))
    with pytest.raises(DrawTableError, match="after step 6, got step 9"):
        draws.publish(9, weights(1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones(3), r"of shape \(50,\), one per instance of the pool, got \(3,\)"),
        (np.full(N_INSTANCES, np.nan), "finite in float32 and at least 0"),
        (np.full(N_INSTANCES, -1.0), "finite in float32 and at least 0"),
        (np.full(N_INSTANCES, 1e39), "finite in float32 and at least 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        table(1).publish(1, bad)
    with pytest.raises(ValueError, match=message):
        table(initial=bad)


@pytest.mark.parametrize("name", ["n_instances", "batch_size", "publish_every"])
def test_numbers_below_1_are_refused(name):
    options = {"n_instances": 2, "batch_size": 2, "publish_every": 2, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        DrawTable(options.pop("n_instances"), **options)


def test_a_state_of_another_pool_or_period_is_refused():
    state = table(3).state_dict()
    for other in (table(4), DrawTable(9, batch_size=BATCH_SIZE, publish_every=3)):
        with pytest.raises(ValueError, match=r"\(publish_every, n_instances\) = \(3, 50\)"):
            other.load_state_dict(state)


def test_two_processes_publish_the_same_weights_or_none(in_processes):
    def work(rank: int) -> None:
        draws = table(2)
        seen = train(draws, batches(draws, 1), 1, 10)
        assert seen == expected(10, 2)
        with pytest.raises(DrawTableError, match="different weights for version 6"):
            draws.publish(12, weights(rank))
        with pytest.raises(DrawTableError, match="different weights for version 0"):
            table(2, initial=weights(rank))

    assert in_processes(2, work) == [0, 0]
