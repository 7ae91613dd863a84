from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bsgal_train import FinishedStep, StopOnPlateau, train
from bsgal_train.recipe import Recipe

NAN = float("nan")


def step(number: int, n_steps: int = 100, **values: float) -> FinishedStep:
    return FinishedStep(
        number=number,
        recipe=Recipe().override(f"schedule.n_steps={n_steps}"),
        folder=Path(),
        detector=nn.Identity(),
        samples=(),
        decisions=(),
        values=values,
    )


def stopped_at(hook: StopOnPlateau, values: list[float], first: int = 1) -> int | None:
    """Return the number of the step that the hook ends the run with."""
    for number, value in enumerate(values, first):
        one = step(number, score=value)
        hook.after_step(one)
        if one.stop_reason is not None:
            return number
    return None


@pytest.mark.parametrize(
    ("goal", "settings", "values", "last"),
    [
        ("max", {"patience": 2}, [1, 2, 2, 2, 9], 4),
        ("max", {"patience": 2}, [1, 2, 1, 3, 1, 1], 6),
        ("max", {"patience": 1}, [1, 2, 3, 4], None),
        ("min", {"patience": 1}, [3, 2, 1, 2], 4),
        ("min", {"patience": 1, "min_change": 0.5}, [3, 2, 1.5, 0], 3),
        # Means of two: 2, 1, 1.
        ("min", {"patience": 1, "window": 2}, [3, 1, 0, 2, 2, 0, 9], 6),
    ],
)
def test_it_stops_once_nothing_is_better_for_long_enough(
    goal: Any, settings: dict[str, Any], values: list[float], last: int | None
) -> None:
    assert stopped_at(StopOnPlateau("score", goal, **settings), values) == last


def test_its_reason_says_what_was_not_reached() -> None:
    hook = StopOnPlateau("score", "max", patience=1)
    stopped_at(hook, [2.0])
    last = step(2, score=1.0)

    hook.after_step(last)

    assert last.stop_reason == "score was no better than 2 for 1 values in a row"


def test_steps_without_the_number_do_not_count() -> None:
    hook = StopOnPlateau("score", "max", patience=1)
    stopped_at(hook, [2.0])
    without = step(2)

    hook.after_step(without)

    assert without.stop_reason is None
    assert stopped_at(hook, [2.0], first=3) == 3


@pytest.mark.parametrize("break_after", range(1, 6))
def test_it_goes_on_from_its_state(break_after: int) -> None:
    values = [3.0, 1.0, 0.0, 2.0, 2.0, 0.0, 1.0, 1.0]
    before, after = (StopOnPlateau("score", "min", patience=2, window=2) for _ in range(2))
    stopped_at(before, values[:break_after])

    after.load_state_dict(before.state_dict())

    assert stopped_at(after, values[break_after:], first=break_after + 1) == 8


def test_a_number_that_never_came_is_said(caplog: pytest.LogCaptureFixture) -> None:
    hook = StopOnPlateau("scroe", "max", patience=1)

    for number in range(1, 4):
        hook.after_step(step(number, n_steps=3, score=1.0))

    assert "no step had a scroe, which the run was to stop on" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal": "up", "patience": 1}, "`goal` must be max or min, got 'up'"),
        ({"goal": "max", "patience": 0}, "at least 1, got 0 and 1"),
        ({"goal": "max", "patience": 1, "window": 0}, "at least 1, got 1 and 0"),
        ({"goal": "max", "patience": 1, "min_change": NAN}, "`min_change` must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopOnPlateau("score", **settings)


def test_validation_that_the_recipe_does_not_ask_for_is_refused(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no val/ap to stop on: set schedule\.eval_every, and"):
        train(tiny_recipe, tmp_path, hooks=[StopOnPlateau("val/ap", "max", patience=1)])


def test_a_run_ends_on_a_plateau_of_its_validation(tiny_recipe: Recipe, tmp_path: Path) -> None:
    # No detector is as good as that.
    hook = StopOnPlateau("val/ap", "max", patience=2, min_change=1.0)
    recipe = tiny_recipe.override("schedule.eval_every=1", "schedule.n_steps=6")

    result = train(recipe, tmp_path, hooks=[hook])

    assert result.n_steps == 3
    assert result.stopped is not None
    assert result.stopped.startswith("val/ap was no better than ")
