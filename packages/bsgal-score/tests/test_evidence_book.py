from __future__ import annotations

import doctest
import hashlib
import io
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bsgal_score import EvidenceBook, EvidenceTable, Source, _evidence_book, _evidence_table
from bsgal_score._hashed_table import HashedTable, hash_ids
from bsgal_score._pooled_ranks import SortedGroups
from bsgal_score._real_window import RealWindow
from bsgal_score.errors import OtherProcessError, StateMismatchError

SOURCES = [Source("prototype", "low"), Source("loss", "high")]
GROUPS = ["r", "r", "c", "f"]


def make(**options):
    return EvidenceBook(SOURCES, GROUPS, **{"min_real": 4, "max_looks": 3, **options})


def look_of(seed, n=60):
    """Return the arguments of a look at n units, a quarter of them generated."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 90, n)
    values = {"prototype": rng.normal(size=n).tolist(), "loss": rng.exponential(size=n).tolist()}
    return [f"unit {i}" for i in numbers], numbers % 4, values, numbers % 4 == numbers % 7 % 4


def part_of(look, chosen):
    ids, classes, values, is_real = look
    return (
        [ids[i] for i in chosen],
        classes[chosen],
        {name: [column[i] for i in chosen] for name, column in values.items()},
        is_real[chosen],
    )


def saved(book):
    file = io.BytesIO()
    torch.save(book.state_dict(), file)
    return file.getvalue()


def test_neither_the_order_of_the_units_of_a_step_nor_an_increasing_function_matters():
    rng = np.random.default_rng(0)
    one, other = make(), make()
    for step in range(6):
        look = look_of(step)
        order = rng.permutation(60)
        shuffled = part_of(look, order)
        one.look(*look)
        other.look(*shuffled)
        assert saved(one) == saved(other)
    cubed = make()
    for step in range(6):
        ids, classes, values, is_real = look_of(step)
        values["loss"] = [10 * loss**3 for loss in values["loss"]]
        cubed.look(ids, classes, values, is_real)
    ids = [f"unit {i}" for i in range(90)]
    assert cubed.p_values(ids).tolist() == pytest.approx(one.p_values(ids).tolist(), nan_ok=True)


def test_a_resumed_book_goes_on_bit_for_bit():
    whole = make()
    for step in range(4):
        whole.look(*look_of(step))
    resumed = make()
    # As a checkpoint is opened: no pickled objects but tensors, numbers and strings.
    state = torch.load(io.BytesIO(saved(whole)), weights_only=True)
    resumed.load_state_dict(state)
    for step in range(4, 9):
        for book in (whole, resumed):
            book.look(*look_of(step))
        ids = look_of(step)[0]
        np.testing.assert_array_equal(whole.p_values(ids), resumed.p_values(ids))
    assert saved(whole) == saved(resumed)
    with pytest.raises(StateMismatchError, match="window"):
        make(window=7).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="sources"):
        EvidenceBook(SOURCES[:1], GROUPS).load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"has no \['table'\]"):
        make().load_state_dict({name: part for name, part in state.items() if name != "table"})


def test_a_real_unit_is_held_against_others_only():
    book = EvidenceBook(SOURCES[1:], ["f"], min_real=4, window=100)
    ids = [f"real {i}" for i in range(49)]
    for _ in range(2):
        book.look(ids, [0] * 49, {"loss": list(range(49))}, [True] * 49)
    # The worst real unit would tie with itself.
    assert book.p_values(["real 48"], real=True).tolist() == [1 / 49]
    assert book.p_values(["real 0"], real=True).tolist() == [1.0]
    # A generated unit may have the id of a real one.
    assert np.isnan(book.p_values(["real 48"]))


def test_few_real_units_of_a_group_are_helped_out_by_all_others():
    book = EvidenceBook(SOURCES[1:], ["f", "r"], min_real=4, window=200)
    real = [f"real {i}" for i in range(120)]
    losses = [*range(100), *range(0, 100, 5)]
    book.look(real, [0] * 100 + [1] * 20, {"loss": losses}, [True] * 120)
    book.look(["bad", "good"], [1, 1], {"loss": [200, 50]}, [False] * 2)
    bad, good = book.p_values(["bad", "good"])
    # None of 20, and at most one of the 100 others, for whom 64 count.
    assert 1 / 85 <= bad < 1.65 / 85
    assert good == pytest.approx(0.5, abs=0.06)
    alone = EvidenceBook(SOURCES[1:], ["f", "r"], min_real=4, window=200, pooling=0)
    alone.look(real, [0] * 100 + [1] * 20, {"loss": losses}, [True] * 120)
    alone.look(["bad"], [1], {"loss": [200]}, [False])
    assert alone.p_values(["bad"]).tolist() == [1 / 21]
    # A group of which no real unit has been seen is judged by all others.
    empty = EvidenceBook(SOURCES[1:], ["f", "r"], min_real=4, window=250)
    real = [f"real {i}" for i in range(250)]
    empty.look(real, [0] * 250, {"loss": list(range(250))}, [True] * 250)
    empty.look(["bad", "good"], [1, 1], {"loss": [300, 125]}, [False] * 2)
    assert empty.table(["bad", "good"], min_looks=1).verdicts.tolist() == ["reject", "accept"]


def test_a_source_that_says_nothing_is_no_evidence():
    none = float("nan")
    book = EvidenceBook(SOURCES, ["f"], min_real=4, window=200)
    real = [f"real {i}" for i in range(99)]
    shuffled = np.random.default_rng(0).permutation(99).tolist()
    # About ten real units the prototype says nothing either.
    prototype = [none] * 10 + [float(one) for one in shuffled[10:]]
    book.look(real, [0] * 99, {"prototype": prototype, "loss": list(range(99))}, [True] * 99)
    ids = ["both", "loss only", "nothing", "later"]
    values = {"prototype": [-50.0, none, none, none], "loss": [40.0, 40.0, none, none]}
    book.look(ids, [0] * 4, values, [False] * 4)
    table = book.table(ids, alpha=0.05, min_looks=1)
    assert table.verdicts.tolist() == ["reject", "accept", "uncertain", "uncertain"]
    assert table.looks.tolist() == [1, 1, 0, 0]
    assert np.isnan(table.evidence["prototype"]).tolist() == [False, True, True, True]
    assert np.isnan(table.p_values).tolist() == [False, False, True, True]
    # By the loss alone, among all real units; by both, among those that have both.
    alone = EvidenceBook(SOURCES[1:], ["f"], min_real=4, window=200)
    alone.look(real, [0] * 99, {"loss": list(range(99))}, [True] * 99)
    alone.look(["loss only"], [0], {"loss": [40.0]}, [False])
    assert table.p_values[1] == alone.p_values(["loss only"])[0]
    # The worst of 99 losses is worse than the worst of 89 prototypes can tell.
    assert table.p_values[0] == 2 / 90
    # A look in which a source is missing leaves what it has said before.
    before = table.evidence["prototype"][0]
    book.look(["both"], [0], {"prototype": [none], "loss": [40.0]}, [False])
    after = book.table(["both"])
    assert after.looks.tolist() == [2]
    assert after.evidence["prototype"][0] == pytest.approx(before)


@pytest.mark.parametrize("combine", ["max", "bonferroni", "cauchy"])
def test_one_source_that_never_speaks_changes_no_p_value(combine):
    books = [
        EvidenceBook(sources, GROUPS, min_real=4, combine=combine)
        for sources in (SOURCES, [*SOURCES, Source("silent", "high")])
    ]
    for step in range(5):
        ids, classes, values, is_real = look_of(step)
        books[0].look(ids, classes, values, is_real)
        books[1].look(ids, classes, {**values, "silent": [float("nan")] * 60}, is_real)
    ids = [f"unit {i}" for i in range(90)]
    assert books[0].p_values(ids).tolist() == pytest.approx(
        books[1].p_values(ids).tolist(), nan_ok=True
    )


def test_verdicts_are_uncertain_with_few_looks_or_few_real_units():
    book = EvidenceBook(SOURCES[1:], ["f", "r"], min_real=4, window=200, pooling=0)
    real = [f"real {i}" for i in range(109)]
    classes, losses = [0] * 99 + [1] * 10, [*range(99), *range(10)]
    new = ["good", "bad", "bad but once", "bad but rare"]
    for number in range(2):
        book.look(real, classes, {"loss": losses}, [True] * 109)
        seen = [0, 1, 2, 3] if number == 0 else [0, 1, 3]
        book.look(
            [new[i] for i in seen], [[0, 0, 0, 1][i] for i in seen],
            {"loss": [[40, 200, 200, 200][i] for i in seen]}, [False] * len(seen),
        )  # fmt: skip
    table = book.table([*new, "never seen"], alpha=0.05)
    assert table.verdicts.tolist() == ["accept", "reject", "uncertain", "uncertain", "uncertain"]
    assert table.looks.tolist() == [2, 2, 1, 2, 0]
    assert table.evidence["loss"][1] > 2 > table.evidence["loss"][0]
    assert np.isnan(table.p_values[4])


def test_old_looks_fade_after_max_looks_so_that_a_verdict_can_be_revised():
    book = EvidenceBook(SOURCES[1:], ["f"], min_real=4, window=200, max_looks=3)
    real, losses = [f"real {i}" for i in range(99)], list(range(99))
    found = []
    for number in range(20):
        book.look(real, [0] * 99, {"loss": losses}, [True] * 99)
        book.look(["new"], [0], {"loss": [200 if number < 5 else 30]}, [False])
        found.append(book.table(["new"], alpha=0.05).verdicts[0])
    assert found[0] == "uncertain"
    assert set(found[1:5]) == {"reject"}
    assert found[-1] == "accept"
    assert book.table(["new"]).looks.tolist() == [20]


def test_looks_do_not_count_before_enough_real_units_were_seen():
    book = make(min_real=20)
    ids = [f"real {i}" for i in range(15)]
    values = {"prototype": [0.0] * 16, "loss": [0.0] * 16}
    book.look([*ids, "new"], [3] * 16, values, [True] * 15 + [False])
    assert len(book) == 0
    assert book.table(["new"]).looks.tolist() == [0]


def test_1_2_million_instances_take_less_than_100_megabytes():
    tracemalloc.start()
    book = EvidenceBook([*SOURCES, Source("mask_loss", "high")], ["f"], min_real=4)
    real = [f"real {i}" for i in range(32)]
    many = {source.name: list(range(32)) for source in book.sources}
    book.look(real, [0] * 32, many, [True] * 32)
    size, peak = 20_000, 0
    values = {source.name: torch.linspace(0, 31, size) for source in book.sources}
    classes, is_real = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    for start in range(0, 1_200_000, size):
        ids = [str(i) for i in range(start, start + size)]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0] - held(book)
        book.look(ids, classes, values, is_real)
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert len(book) == 1_200_032
    # 29 bytes each.
    assert held(book) < 36e6
    assert peak < 100e6


def held(book):
    return sum(column.nbytes for part in book._table._parts for column in part.values())


def test_the_table_keeps_what_a_dictionary_would():
    rng = np.random.default_rng(1)
    table, expected = HashedTable(2), {}
    for step in range(300):
        hashes = np.unique(rng.integers(0, 60_000, 300).astype(np.uint64))
        rows = table.find(hashes)
        for i, one in enumerate(hashes.tolist()):
            looks, means = expected.get(one, (0, (0.0, 0.0)))
            assert (rows["looks"][i], tuple(rows["means"][i])) == (looks, means)
            expected[one] = (looks + 1, (step, one))
        rows["looks"] += 1
        rows["means"][:] = np.stack([np.full(len(hashes), step), hashes.astype(float)], axis=1)
        table.put(rows)
    assert len(table) == len(expected) > 1 << 15
    assert table.columns()["hashes"].tolist() == sorted(expected)


def test_hashes_are_64_bits_and_the_same_everywhere():
    digests = [hashlib.blake2b(one, digest_size=8).digest() for one in (b"a", "ä".encode())]
    expected = [int.from_bytes(digest, "little") for digest in digests]
    assert hash_ids(["a", "ä"]).tolist() == expected
    assert len(np.unique(hash_ids([str(i) for i in range(100_000)]))) == 100_000


def seen_in(window):
    return sorted(window.hashes[window.seen > 0].tolist())


def test_a_window_keeps_the_newest_units_of_a_class_each_once():
    window = RealWindow(2, 2, 1)
    steps = (([1, 2, 9], [0, 0, 1]), ([1], [0]), ([3], [0]), ([1, 4, 5], [0, 0, 0]))
    kept = [[1, 2, 9], [1, 2, 9], [1, 3, 9], [1, 4, 9]]
    for (hashes, classes), expected in zip(steps, kept, strict=True):
        values = np.array(hashes, np.float32)[:, None]
        slots, _ = window.enter(np.array(hashes, np.uint64), np.array(classes, np.int32), values)
        assert seen_in(window) == expected
        # No slot was left for the last one of the last step.
        assert (slots >= 0).all() == (len(hashes) < 3 or 9 in hashes)
    assert sorted(window.values[~np.isnan(window.values)].tolist()) == [1, 4, 9]


def test_sorted_values_that_change_are_those_sorted_anew():
    rng = np.random.default_rng(7)
    groups = rng.integers(0, 3, 200).astype(np.int32)
    values = rng.integers(0, 20, 200).astype(np.float32)
    values[::9] = np.nan
    ordered = SortedGroups(values, groups, 3)
    for _ in range(20):
        chosen = rng.choice(200, 30, replace=False)
        new = rng.integers(0, 20, 30).astype(np.float32)
        new[::7] = np.nan
        ordered.replace(values[chosen], new, groups[chosen])
        values[chosen] = new
    again = SortedGroups(values, groups, 3)
    probes = np.arange(-1, 21, dtype=np.float32)
    assert ordered.below(probes, ties=0.5).tolist() == again.below(probes, ties=0.5).tolist()
    assert ordered.sizes.tolist() == again.sizes.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [4]}, r"`classes` must lie in \[0, 4\), got 4 for 'a'"),
        ({"classes": [-1]}, "got -1 for 'a'"),
        ({"classes": [1]}, "has the class 1 and had another one"),
        ({"is_real": [True, False]}, "`ids` has 1 units, is_real has 2"),
        ({"values": {"prototype": [1.0]}}, r"must hold the sources \['loss', 'prototype'\]"),
        ({"values": {"prototype": [1.0], "loss": [-np.inf]}}, "or NaN for none, got -inf for 'a'"),
        ({"values": {"prototype": [np.inf], "loss": [1.0]}}, "'prototype' must be finite, or NaN"),
    ],
)
def test_a_look_that_cannot_be_is_refused_and_changes_nothing(change, message):
    book = make()
    look = {"ids": ["a"], "classes": [3], "is_real": [False]}
    look["values"] = {"prototype": [0.0], "loss": [1.0]}
    real = {"prototype": [0.0] * 9, "loss": [1.0] * 9}
    book.look([f"real {i}" for i in range(9)], [3] * 9, real, [True] * 9)
    book.look(**look)
    before = saved(book)
    with pytest.raises(ValueError, match=message):
        book.look(**{**look, **change})
    assert saved(book) == before


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: EvidenceBook([], GROUPS), "`sources` must be at least one"),
        (lambda: EvidenceBook(SOURCES * 2, GROUPS), "of distinct names"),
        (lambda: EvidenceBook([Source("loss", "big")], GROUPS), "`bad` must be 'low' or 'high'"),
        (lambda: EvidenceBook(SOURCES, []), "at least one class"),
        (lambda: make(window=0), r"`window` must lie in \[1, 256\), got 0"),
        (lambda: make(max_looks=1 << 16), "`max_looks`"),
        (lambda: make(min_real=0), "`min_real`"),
        (lambda: make(shrinkage=0.0), "`shrinkage` must be positive"),
        (lambda: make(pooling=-1.0), "`pooling` must be finite and not negative"),
        (
            lambda: EvidenceBook([Source("loss", "high", -1.0)], GROUPS),
            "positive and finite, got -1",
        ),
        (lambda: make(combine="mean"), "`combine` must be one of"),
        (lambda: make().table([], alpha=1.0), r"`alpha` must lie in \(0, 1\)"),
        (lambda: make().table([], min_looks=0), "`min_looks` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(make_one, message):
    with pytest.raises(ValueError, match=message):
        make_one()


def test_an_empty_look_is_none():
    book = make()
    book.look([], [], {"prototype": [], "loss": []}, [])
    assert book.table([]).verdicts.tolist() == []


def test_a_table_goes_through_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    book = make()
    for step in range(6):
        book.look(*look_of(step))
    table = book.table([f"unit {i}" for i in range(100)], alpha=0.2, min_looks=1)
    assert len(set(table.verdicts.tolist())) == 3
    path = tmp_path / "values.parquet"
    table.to_parquet(path)
    opened = EvidenceTable.from_parquet(path)
    assert opened.ids == table.ids
    assert (opened.alpha, opened.min_looks) == (0.2, 1)
    assert opened.verdicts.tolist() == table.verdicts.tolist()
    np.testing.assert_array_equal(opened.looks, table.looks)
    np.testing.assert_array_equal(opened.p_values, table.p_values)
    for name, values in table.evidence.items():
        np.testing.assert_array_equal(opened.evidence[name], values)
    assert [one.name for one in tmp_path.iterdir()] == ["values.parquet"]


def test_another_file_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ValueError, match="must be a file of evidence with schema 1, got None"):
        EvidenceTable.from_parquet(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is no parquet file"):
        EvidenceTable.from_parquet(path)


def test_docstring_examples_run():
    for module in (_evidence_book, _evidence_table):
        assert doctest.testmod(module).attempted > 0
        assert doctest.testmod(module).failed == 0


def test_pyarrow_is_imported_by_files_only():
    code = "import sys, bsgal_score; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def work(folder, process):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    book = make()
    for step in range(6):
        # Of different numbers of looks; process 1 has none in step 3.
        mine = np.arange(60)[: 60 if step == 3 else 37]
        chosen = mine if process == 0 else np.setdiff1d(np.arange(60), mine)
        look = part_of(look_of(step), chosen)
        book.look(*look, group=dist.group.WORLD)
    before = saved(book)
    ids, classes, values, is_real = look_of(7)
    if process == 1:
        values["loss"][0] = float("inf")
    try:
        book.look(ids, classes, values, is_real, group=dist.group.WORLD)
        raised = None
    except (OtherProcessError, ValueError) as error:
        raised = type(error).__name__, str(error)
    result = {"state": before, "same": saved(book) == before, "raised": raised}
    torch.save(result, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_processes_equal_one_with_all_looks():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        running = [
            subprocess.Popen([*command, str(process)], stderr=subprocess.PIPE, text=True)
            for process in range(2)
        ]
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        results = [torch.load(Path(folder) / f"{process}.pt") for process in range(2)]
    book = make()
    for step in range(6):
        book.look(*look_of(step))
    for result in results:
        assert result["state"] == saved(book)
        assert result["same"]
    assert results[0]["raised"][0] == "OtherProcessError"
    assert "'loss' must be finite, or NaN for none, got inf" in results[1]["raised"][1]


def test_an_earlier_table_counts_where_it_is_made_of_more_looks() -> None:
    def table(ids: list[str], looks: list[int], p: float, verdict: str) -> EvidenceTable:
        n = len(ids)
        evidence = {"loss": np.full(n, p, dtype=np.float32)}
        return EvidenceTable(
            ids, np.array(looks), evidence, np.full(n, p), np.array([verdict] * n), 0.05, 2
        )

    now = table(["a", "b", "c"], [1, 4, 0], 0.5, "accept")
    before = table(["x", "b", "c", "a"], [9, 3, 2, 2], 0.01, "reject")
    mixed = now.or_before(before)

    assert mixed.ids == ["a", "b", "c"]
    assert mixed.looks.tolist() == [2, 4, 2]
    assert mixed.verdicts.tolist() == ["reject", "accept", "reject"]
    assert mixed.p_values.tolist() == [0.01, 0.5, 0.01]
    assert mixed.evidence["loss"].tolist() == pytest.approx([0.01, 0.5, 0.01])
    assert now.verdicts.tolist() == ["accept"] * 3
    other = EvidenceTable(["a"], np.array([9]), {}, np.array([0.2]), np.array(["accept"]), 0.05, 2)
    assert np.isnan(now.or_before(other).evidence["loss"][0])


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
