"""Real units that are held out are judged: at most a share alpha may be rejected."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bsgal_score import EvidenceBook, Source
from bsgal_score._conformal import Calibration
from bsgal_score._real_window import RealWindow

SOURCES = [Source("prototype", "low"), Source("loss", "high"), Source("mask_loss", "high")]
# Rare classes have one to three real objects.
N_CLASSES = {"r": 60, "c": 24, "f": 10}
N_OBJECTS = {"r": (1, 3), "c": (5, 8), "f": (20, 30)}
ALPHA = 0.05


def judge_held_out(
    seed, *, n_looks=4, real_looks=(1, 3), n_classes=N_CLASSES, spoilt_by=0.0, gaps=(0.0, 0.0, 0.0),
    missing=0.0, noise="normal", **options,
):  # fmt: skip
    """Judge a third of the objects as if generated; return groups, verdicts, which are spoilt.

    The others are looked at one to three times, the judged ones `n_looks` times. Classes have means
    of their own, groups are `gaps` apart; sources are correlated with 0.9 in objects and in looks;
    one is heavy-tailed, and all move with the model. Of the judged, every second is spoilt, in one
    source, by `spoilt_by`.
    """
    rng = np.random.default_rng(seed)
    sizes = list(n_classes.values())
    groups = np.repeat(list(n_classes), sizes)
    n_objects = [int(rng.integers(*N_OBJECTS[group], endpoint=True)) for group in groups]
    means = rng.normal(size=(len(groups), 3)) + np.repeat(gaps, sizes)[:, None]
    classes = np.repeat(np.arange(len(groups)), n_objects)
    n, is_real = len(classes), rng.random(len(classes)) > 1 / 3
    truth = means[classes] + 0.7 * dependent(rng, n, noise)
    spoilt = ~is_real & (np.arange(n) % 2 == 0) & (spoilt_by > 0)
    truth[spoilt, rng.integers(0, 3, spoilt.sum())] += spoilt_by
    ids = np.array([f"object {i}" for i in range(n)])
    looks = np.where(is_real, rng.integers(*real_looks, n, endpoint=True), n_looks)
    order = rng.permutation(np.repeat(np.arange(n), looks))
    book = EvidenceBook(SOURCES, groups.tolist(), **options)
    for number, step in enumerate(np.array_split(order, 20)):
        seen = truth[step] + 0.7 * dependent(rng, len(step), noise) - 0.02 * number
        seen[rng.random(seen.shape) < missing] = np.nan
        values = {"prototype": -seen[:, 0], "loss": np.exp(seen[:, 1]), "mask_loss": seen[:, 2]}
        book.look(ids[step].tolist(), classes[step], values, is_real[step])
    verdicts = book.table(ids[~is_real].tolist(), alpha=ALPHA, min_looks=1).verdicts
    return groups[classes[~is_real]], verdicts, spoilt[~is_real]


def rejected(n_seeds=16, **settings):
    """Return, by group, the rejected shares of the good and of the spoilt, and how many are good.

    Uncertain ones are not rejected.
    """
    results = [judge_held_out(seed, **settings) for seed in range(n_seeds)]
    groups, verdicts, spoilt = (np.concatenate(parts) for parts in zip(*results, strict=True))
    shares = {}
    for group in N_CLASSES:
        good, bad = ((groups == group) & one for one in (~spoilt, spoilt))
        found = float((verdicts[bad] == "reject").mean()) if bad.any() else math.nan
        shares[group] = float((verdicts[good] == "reject").mean()), found, int(good.sum())
    return shares


def dependent(rng, n, noise="normal"):
    def draw(*shape):
        if noise == "normal":
            return rng.normal(size=shape)
        return rng.standard_t(3, size=shape) / math.sqrt(3)

    return np.sqrt(0.9) * draw(n, 1) + np.sqrt(0.1) * draw(n, 3)


def half_width(share, n, z=2.576):
    """Return half of the 99 % interval of a share of n, or of that of another z."""
    return z * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_looks": 1}, {"n_looks": 2}, {"n_looks": 4}, {"n_looks": 8}, {"n_looks": 12},
        {"gaps": (1.5, 0.0, -1.0)}, {"missing": 0.3}, {"noise": "heavy"},
        {"combine": "bonferroni"}, {"combine": "cauchy"},
        {"shrinkage": 0.5}, {"shrinkage": 20.0}, {"pooling": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_the_share_of_held_out_real_units_that_is_rejected_is_at_most_alpha_in_every_group(
    settings,
):
    for group, (share, _, n) in rejected(**settings).items():
        assert n > 500
        assert share <= ALPHA + half_width(ALPHA, n), (group, share, n)
        if settings == {"n_looks": 2}:
            # As many looks as a real unit has on average: no less either.
            assert share >= ALPHA - half_width(ALPHA, n), (group, share, n)


def test_with_twenty_rare_units_no_more_good_are_lost_and_most_spoilt_are_found():
    few = {"r": 10, "c": 10, "f": 20}
    for group, (share, found, n) in rejected(30, n_classes=few, spoilt_by=3.0).items():
        assert share <= ALPHA + half_width(ALPHA, n), (group, share, n)
        assert found > 0.7, (group, found)
    # By their own group alone, hardly a spoilt rare one could be told from the twenty.
    alone = rejected(n_classes=few, spoilt_by=3.0, pooling=0.0)
    assert alone["r"][1] < 0.3


def test_more_looks_find_more_though_real_units_have_one_to_three():
    once, four = (rejected(spoilt_by=3.0, n_looks=n_looks) for n_looks in (1, 4))
    for group, at_least in {"r": 0.7, "c": 0.85, "f": 0.9}.items():
        assert four[group][1] > at_least
        assert four[group][1] > once[group][1] + 0.05


def test_the_largest_distance_finds_more_than_a_corrected_p_value():
    together, corrected = (
        rejected(spoilt_by=3.0, combine=combine) for combine in ("max", "bonferroni")
    )
    for group in N_CLASSES:
        assert together[group][1] > corrected[group][1]


def windowed(evidence, classes, n_classes):
    """Return a window of real units with this evidence."""
    window = RealWindow(n_classes, 64, evidence.shape[1])
    hashes = np.arange(len(classes), dtype=np.uint64)
    slots, _ = window.enter(hashes, classes, evidence)
    counts = np.ones(evidence.shape, np.uint8)
    window.write(classes, slots, evidence, counts, np.full(evidence.shape, np.nan))
    return window


def judge_one(evidence, classes, shrinkage, pooling, combine, groups):
    """Return the p-value of the first unit among the others, and the smallest possible one."""
    calibration = Calibration(
        windowed(evidence[1:], classes[1:], len(groups)),
        groups,
        np.full(evidence.shape[1], shrinkage),
        pooling,
        combine,
    )
    ones = np.ones((1, evidence.shape[1]), np.uint8)
    _, p_values, smallest = calibration.judge(classes[:1], np.array([-1]), evidence[:1], ones)
    return float(p_values[0]), float(smallest[0])


@pytest.mark.parametrize("combine", ["max", "bonferroni"])
@pytest.mark.parametrize("shrinkage", [0.1, 2.0, 1000.0])
def test_p_values_of_exchangeable_evidence_are_uniform_or_larger(combine, shrinkage):
    rng = np.random.default_rng(5)
    n_bags, n_real = 1500, 39
    p_values, one_group = np.empty(n_bags), np.zeros(8, np.int32)
    for bag in range(n_bags):
        # Heavy tails, unequal classes, equal sources but for a little noise.
        classes = rng.choice(8, size=n_real + 1, p=np.arange(8, 0, -1) / 36).astype(np.int32)
        one = 2 * rng.standard_t(3, 8)[classes] + rng.standard_t(3, n_real + 1)
        evidence = (one[:, None] + 0.1 * rng.normal(size=(n_real + 1, 2))).astype(np.float32)
        p_values[bag], _ = judge_one(evidence, classes, shrinkage, 0.0, combine, one_group)
    # 99 % for all 39 levels together.
    for level in np.arange(1, n_real + 1) / (n_real + 1):
        share, width = float((p_values <= level + 1e-9).mean()), half_width(level, n_bags, z=3.65)
        assert share <= level + width, (level, share)


def test_whatever_the_other_groups_are_like_the_rejected_share_has_a_bound():
    rng = np.random.default_rng(6)
    n, pooling, alpha, n_bags = 30, 16.0, 0.1, 2000
    groups, low = np.array([0, 1], np.int32), 0
    classes = np.array([0] * (n + 1) + [1] * 40, np.int32)
    for _ in range(n_bags):
        # Real units of the other group vary a hundredth as much: no help.
        evidence = rng.normal(size=(n + 41, 1)) * np.where(classes == 0, 1.0, 0.01)[:, None]
        p_value, _ = judge_one(evidence.astype(np.float32), classes, 2.0, pooling, "max", groups)
        low += p_value <= alpha
    bound = alpha * (1 + pooling / (1 + n))
    assert low / n_bags <= bound + half_width(bound, n_bags)


def test_real_units_with_equal_values_are_never_rejected():
    values = np.full((31, 1), 0.1, np.float32)
    p_value, smallest = judge_one(
        values, np.zeros(31, np.int32), 2.0, 64.0, "max", np.zeros(1, np.int32)
    )
    assert p_value == 1.0
    assert smallest == 1 / 31
