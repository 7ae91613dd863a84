from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pyarrow as pa
import pytest

from bsgal_train.inspect.report.charts import MAX_DOTS
from bsgal_train.inspect.report.verdicts import Verdicts
from bsgal_train.run_folder.decision_log import SCHEMA, Decision

Decide = Callable[..., Decision]


def verdicts_of(decisions: Sequence[Decision]) -> Verdicts:
    return Verdicts(pa.Table.from_pylist([asdict(one) for one in decisions], schema=SCHEMA))


def test_acceptance_is_counted_by_group_in_each_stretch(decide: Decide) -> None:
    verdicts = verdicts_of(
        [
            decide(1, "103-0", "accept"),
            decide(1, "105-0", "reject"),
            decide(2, "103-0", "reject"),
            decide(2, "103-1", "accept"),
        ]
    )

    lines = {line.name: list(line.points) for line in verdicts.acceptance()}

    assert lines == {
        "all": [(1.0, 0.5), (2.0, 0.5)],
        "rare": [(1.0, 1.0), (2.0, 0.5)],
        "common": [(1.0, 0.0)],
    }


def test_every_verdict_falls_into_a_stretch_of_a_long_run(decide: Decide) -> None:
    verdicts = verdicts_of([decide(step, "103-0", "accept") for step in range(7, 1000, 3)])

    everything = verdicts.acceptance()[0]

    assert len(everything.points) == 40
    assert all(share == 1.0 for _, share in everything.points)
    assert 7 < everything.points[0][0] < everything.points[-1][0] < 1000


def test_what_has_no_verdict_does_not_count(decide: Decide) -> None:
    verdicts = verdicts_of(
        [
            decide(1, "103-0", "no_evidence", contribution=None),
            decide(1, "103-1", "nonfinite", contribution=None),
        ]
    )

    assert len(verdicts) == 0
    assert verdicts.acceptance() == []
    assert verdicts.histograms() == []
    assert verdicts.over_time() == []
    assert verdicts.best_accepted(5) == []


def test_verdicts_without_a_score_are_counted_but_not_ranked(decide: Decide) -> None:
    verdicts = verdicts_of([decide(1, "103-0", "accept", contribution=None)])

    assert not verdicts.has_scores
    assert verdicts.of_categories() == {3: (1, 1)}
    assert verdicts.acceptance()[0].points == [(1.0, 1.0)]
    assert verdicts.best_accepted(5) == []
    assert verdicts.histograms() == []


def test_instances_are_ranked_by_their_mean_score(decide: Decide) -> None:
    verdicts = verdicts_of(
        [
            decide(1, "103-0", "accept", contribution=0.2),
            decide(2, "103-0", "accept", contribution=0.4),
            decide(1, "105-0", "accept", contribution=0.9),
            decide(1, "103-1", "accept", contribution=0.8),
            decide(2, "103-1", "reject", contribution=-0.9),
            decide(3, "105-1", "reject", contribution=-0.5),
        ]
    )

    best, worst = verdicts.best_accepted(5), verdicts.worst_rejected(5)

    assert [one.instance_id for one in best] == ["105-0", "103-0"]
    assert best[1].contribution == pytest.approx(0.3)
    assert (best[1].times_judged, best[1].times_accepted, best[1].frequency) == (2, 2, "r")
    assert [one.instance_id for one in worst] == ["105-1", "103-1"]
    assert [one.instance_id for one in verdicts.worst_rejected(1)] == ["105-1"]


def test_a_histogram_holds_every_score_once(decide: Decide) -> None:
    decisions = [
        decide(step, "103-0", "accept" if step % 2 else "reject", contribution=step / 100)
        for step in range(300)
    ]
    # Far out, so it must land in the last bin.
    decisions.append(decide(300, "103-0", "accept", contribution=1e6))

    (histogram,) = verdicts_of(decisions).histograms()

    assert sum(histogram.n_accepted) == 151
    assert sum(histogram.n_rejected) == 150
    assert histogram.edges[-1] < 4
    assert histogram.n_accepted[-1] > 0


@pytest.mark.parametrize(("granularity", "n_dots"), [("batch", 2), ("image", 3), ("instance", 4)])
def test_there_is_one_dot_for_what_shares_a_verdict(
    granularity: str, n_dots: int, decide: Decide
) -> None:
    verdicts = verdicts_of(
        [
            decide(1, "103-0", "accept", granularity=granularity),
            decide(1, "103-1", "accept", granularity=granularity),
            decide(1, "105-0", "accept", granularity=granularity, image_id=2),
            decide(2, "105-0", "accept", granularity=granularity, image_id=2),
        ]
    )

    assert len(verdicts.over_time()) == n_dots


def test_a_long_log_gives_no_more_dots_than_are_drawn(decide: Decide) -> None:
    verdicts = verdicts_of([decide(step, "103-0", "accept") for step in range(MAX_DOTS + 1)])

    assert MAX_DOTS / 2 <= len(verdicts.over_time()) <= MAX_DOTS
