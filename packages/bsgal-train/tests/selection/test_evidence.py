"""Evidence about instances from looks whose values are made up, so that the truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bsgal_train.processes import group as processes
from bsgal_train.recipe import SelectionConfig
from bsgal_train.selection.class_averages import ClassAverages
from bsgal_train.selection.evidence import InstanceEvidence
from bsgal_train.selection.scoring.looks import LOSSES, Looks

N_CLASSES, WIDTH = 12, 16
FREQUENCIES = ["r"] * 4 + ["c"] * 4 + ["f"] * 4
CENTRES = np.random.default_rng(5).normal(size=(N_CLASSES, WIDTH)).astype(np.float32)
Kinds = npt.NDArray[np.str_]


def make_looks(
    ids: list[str], classes: npt.NDArray[np.int64], kinds: Kinds, is_real: bool, seed: int
) -> Looks:
    """Objects near their class's centre; `alien` ones near another, `frayed` with a bad outline."""
    rng = np.random.default_rng(seed)
    n = len(ids)
    where = np.where(kinds == "alien", (classes + 1) % N_CLASSES, classes)
    losses = {name: rng.lognormal(size=n).astype(np.float32) for name in LOSSES}
    # What is hard of a mask depends on the class, too.
    losses["mask_hardest"] *= np.exp(classes + 4.0 * (kinds == "frayed")).astype(np.float32)
    return Looks(
        ids=tuple(ids),
        classes=classes,
        is_real=np.full(n, is_real),
        features=CENTRES[where] + rng.normal(size=(n, WIDTH)).astype(np.float32),
        losses=losses,
        visible_frac=np.ones(n, dtype=np.float32),
    )


def real_looks(seed: int, n_each: int = 12) -> Looks:
    classes = np.repeat(np.arange(N_CLASSES), n_each)
    ids = [f"{k}:{k}" for k in range(len(classes))]
    return make_looks(ids, classes, np.full(len(ids), "good"), True, seed)


CLASSES = np.repeat(np.arange(N_CLASSES), 20)
IDS = [f"p{k}" for k in range(len(CLASSES))]
KINDS = np.array((["good"] * 14 + ["alien"] * 3 + ["frayed"] * 3) * N_CLASSES)


def looked_at(config: SelectionConfig, n_looks: int = 3) -> InstanceEvidence:
    evidence = InstanceEvidence(WIDTH, FREQUENCIES, config)
    for number in range(n_looks):
        evidence.take(real_looks(100 + number), is_shared=True)
        evidence.take(make_looks(IDS, CLASSES, KINDS, False, number), is_shared=True)
    return evidence


def config(**changes: object) -> SelectionConfig:
    return SelectionConfig(mode="instance", **changes)  # type: ignore[arg-type]


def rejected(evidence: InstanceEvidence) -> dict[str, float]:
    is_rejected = evidence.table(IDS).verdicts == "reject"
    return {kind: float(is_rejected[kind == KINDS].mean()) for kind in ("good", "alien", "frayed")}


def test_both_sources_find_what_the_other_does_not_see() -> None:
    found = rejected(looked_at(config()))

    assert found["alien"] > 0.9
    assert found["frayed"] > 0.9
    assert found["good"] < 0.1
    feature = rejected(looked_at(config(sources=("prototype",))))
    assert feature["alien"] > 0.9 > 0.2 > feature["frayed"]
    outline = rejected(looked_at(config(sources=("outline",))))
    assert outline["frayed"] > 0.9 > 0.2 > outline["alien"]


def test_the_outline_is_relative_to_the_class() -> None:
    # Of the last class every mask is a hundred times as hard as of the others, good or not.
    found = looked_at(config(sources=("outline",))).table(IDS)

    of_last = (CLASSES == N_CLASSES - 1) & (KINDS == "good")
    assert (found.verdicts[of_last] == "reject").mean() < 0.2


@pytest.mark.parametrize("source", ["real_prototype", "cls_loss", "box_loss", "mask_loss"])
def test_every_source_can_be_used_alone(source: str) -> None:
    table = looked_at(config(sources=(source,))).table(IDS)

    assert set(table.evidence) == {source}
    assert np.isfinite(table.p_values).all()


def test_too_few_looks_are_uncertain_and_have_no_p_value() -> None:
    evidence = looked_at(config(min_looks=3), n_looks=2)

    assert set(evidence.table(IDS).verdicts.tolist()) == {"uncertain"}
    assert np.isnan(evidence.p_values(IDS)).all()
    assert np.isnan(evidence.p_values(["never seen"])).all()


def test_a_p_value_is_rejected_from_the_level_down() -> None:
    evidence = looked_at(config(alpha=0.1))

    p_values, verdicts = evidence.p_values(IDS), evidence.table(IDS).verdicts
    assert ((p_values <= 0.1) == (verdicts == "reject")).all()


def test_covered_objects_and_those_without_rows_say_nothing() -> None:
    evidence = InstanceEvidence(WIDTH, FREQUENCIES, config(min_looks=1))
    evidence.take(real_looks(0), is_shared=True)
    looks = make_looks(IDS, CLASSES, KINDS, False, 0)
    looks.visible_frac[:] = np.where(np.arange(len(looks)) % 3 == 0, 0.2, 1.0)
    looks.features[1::3] = np.nan
    evidence.take(looks, is_shared=True)

    assert evidence.table(IDS).looks.tolist() == [0, 0, 1] * (len(IDS) // 3)


def rejected_by_group(seed: int, alpha: float) -> npt.NDArray[np.float64]:
    """Return the share of r, c, f rejected of held-out objects, as many as real ones, 32 each."""
    rng = np.random.default_rng(seed)
    classes = np.tile(np.repeat(np.arange(N_CLASSES), 8), 2)
    n = len(classes)
    is_real = np.arange(n) < n // 2
    ids = [f"{k}:{k}" if real else f"p{k}" for k, real in enumerate(is_real)]
    own = rng.normal(size=(n, WIDTH)).astype(np.float32)
    hard = np.exp(rng.normal(size=n)).astype(np.float32)
    evidence = InstanceEvidence(WIDTH, FREQUENCIES, config(alpha=alpha))
    for number in range(2):
        looks = make_looks(ids, classes, np.full(n, "good"), True, 1000 * seed + number)
        # An object looks like itself from look to look.
        looks.features[:] += own
        looks.losses["mask_hardest"][:] *= hard
        looks = dataclasses.replace(looks, is_real=is_real)
        for batch in np.array_split(rng.permutation(n), 4):
            evidence.take(looks.only(np.isin(np.arange(n), batch)), is_shared=True)
    verdicts = evidence.table([name for name in ids if name.startswith("p")]).verdicts
    return (verdicts.reshape(3, -1) == "reject").mean(axis=1)


def test_of_held_out_objects_the_share_that_the_level_says_is_rejected_in_each_group() -> None:
    alpha, n_books = 0.1, 60
    shares = np.mean([rejected_by_group(seed, alpha) for seed in range(n_books)], axis=0)

    # A book holds 32 judged of a group against 32 real ones: both counts are chance.
    half_width = 2.576 * math.sqrt(alpha * (1 - alpha) * (1 / 32 + 1 / 32) / n_books)
    assert (np.abs(shares - alpha) <= half_width).all(), (shares, half_width)


def test_a_restored_evidence_goes_on_bit_for_bit() -> None:
    one = looked_at(config(), n_looks=2)
    other = InstanceEvidence(WIDTH, FREQUENCIES, config())
    other.load_state_dict(one.state_dict())
    for evidence in (one, other):
        evidence.take(real_looks(7), is_shared=True)
        evidence.take(make_looks(IDS, CLASSES, KINDS, False, 7), is_shared=True)

    a, b = one.table(IDS), other.table(IDS)
    assert a.p_values.tobytes() == b.p_values.tobytes()
    assert a.verdicts.tolist() == b.verdicts.tolist()


def test_two_processes_know_what_one_knows(
    in_processes: Callable[[int, Callable[[int], object]], list[int]],
) -> None:
    def parts(looks: Looks, n: int) -> list[Looks]:
        return [looks.only(np.arange(len(looks)) % n == rank) for rank in range(n)]

    one = looked_at(config(), n_looks=2).table(IDS)

    def work(rank: int) -> None:
        evidence = InstanceEvidence(WIDTH, FREQUENCIES, config())
        for number in range(2):
            evidence.take(parts(real_looks(100 + number), 2)[rank], is_shared=False)
            looks = make_looks(IDS, CLASSES, KINDS, False, number)
            evidence.take(parts(looks, 2)[rank], is_shared=False)
        table = evidence.table(IDS)
        assert table.looks.tolist() == one.looks.tolist()
        np.testing.assert_allclose(table.p_values, one.p_values, atol=1e-9)
        assert len({p.tobytes() for (p,) in processes.gather([table.p_values])}) == 1

    assert in_processes(2, work) == [0, 0]


def test_class_averages_follow_their_class_as_far_as_it_has_shown_itself() -> None:
    averages = ClassAverages(2)
    assert averages.relative(np.array([0, 1]), np.array([3.0, 5.0])).tolist() == [3.0, 5.0]
    averages.add(np.array([0] * 1000), np.full(1000, 2.0), is_shared=True)
    averages.add(np.array([1, 1]), np.array([10.0, np.nan]), is_shared=True)

    of_first, of_second = averages.relative(np.array([0, 1]), np.array([2.0, 10.0]))
    assert abs(of_first) < 0.01
    # One object of its own against eight of all.
    assert of_second == pytest.approx(10.0 - (10.0 + 8 * 2.008) / 9, abs=0.02)
    assert np.isnan(averages.relative(np.array([0]), np.array([np.nan])))[0]
