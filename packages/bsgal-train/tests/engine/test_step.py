from __future__ import annotations

from bsgal_train.engine.step import step_seed


def test_seeds_differ_between_steps_and_runs() -> None:
    seeds = {step_seed(seed, step) for seed in range(3) for step in range(100)}

    assert len(seeds) == 300
