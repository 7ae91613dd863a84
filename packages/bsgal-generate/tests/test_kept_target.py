from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsgal_generate import (
    GenerationPlan,
    GenerationProgress,
    ImagePipeline,
    ImageSet,
    SamplingConfig,
    generate,
    next_round,
)
from bsgal_generate.errors import ConfigChangedError, ImageSetError

MakeStub = Callable[..., tuple[ImagePipeline, Any]]
MakePlan = Callable[..., GenerationPlan]
CONFIG = SamplingConfig(max_redraws=1)
# Of category 1 every image is kept, of 2 every third, of 3 none.
KEEPS = {1: 1, 2: 3, 3: None}


def cut(set_dir: Path, pool_dir: Path) -> None:
    """Write the pool manifest that a mask tool would write."""
    pool_dir.mkdir(exist_ok=True)
    (pool_dir / "meta.json").write_text('{"schema": "bsgal.instance_pool/1"}')
    lines = []
    for row in ImageSet.open(set_dir):
        every = KEEPS[row.category_id]
        kept = every is not None and int(row.sample_id.rsplit("-", 1)[1]) % every == 0
        status, reason = ("kept", None) if kept else ("dropped", "area: too small")
        entry = {"sample_id": row.sample_id, "status": status, "reason": reason}
        lines.append(json.dumps(entry) + "\n")
    (pool_dir / "manifest.jsonl").write_text("".join(lines))


@pytest.fixture
def run_round(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> Callable[..., tuple[dict[int, int], tuple[int, ...]]]:
    def run(name: str = "set", *, stop_after: int | None = None) -> Any:
        plan = make_plan(n_categories=3, images_per_category=4)
        options = {"kept_target": 4, "cap": 20, "max_redraws": 1}
        planned = next_round(plan, tmp_path / name, tmp_path / f"{name}-pool", **options)
        n_calls = 0

        def stop(progress: GenerationProgress) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == stop_after:
                raise KeyboardInterrupt

        pipeline, _ = make_stub()
        generate(
            planned.plan, pipeline, tmp_path / name, config=CONFIG, batch_size=3, progress=stop
        )
        return {i: planned.plan.count_of(i) for i in KEEPS}, planned.capped

    return run


def test_rounds_add_images_where_instances_are_missing_up_to_the_cap(
    run_round: Callable[..., Any], tmp_path: Path
) -> None:
    seen = []
    for _ in range(5):
        seen.append(run_round())
        cut(tmp_path / "set", tmp_path / "set-pool")
    assert seen == [
        ({1: 4, 2: 4, 3: 4}, ()),
        # Two of four images of category 2 were kept, so eight should give four.
        ({1: 4, 2: 8, 3: 8}, ()),
        # They gave three.
        ({1: 4, 2: 11, 3: 16}, ()),
        ({1: 4, 2: 11, 3: 20}, ()),
        ({1: 4, 2: 11, 3: 20}, (3,)),
    ]
    image_set = ImageSet.open(tmp_path / "set")
    assert len(image_set) == len(image_set.attempts) == 35
    rounds = (tmp_path / "set" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["images_per_category"] for line in rounds] == [
        {"1": 4, "2": 8, "3": 8}, {"1": 4, "2": 11, "3": 16}, {"1": 4, "2": 11, "3": 20}
    ]  # fmt: skip


def test_stopped_round_is_ended_first_and_gives_the_manifest_of_an_unbroken_one(
    run_round: Callable[..., Any], tmp_path: Path
) -> None:
    for _ in range(2):
        run_round("whole")
        cut(tmp_path / "whole", tmp_path / "whole-pool")
    for stop_after in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            run_round("cut", stop_after=stop_after)
        run_round("cut")
        cut(tmp_path / "cut", tmp_path / "cut-pool")
    whole, resumed = ((tmp_path / n / "manifest.jsonl").read_bytes() for n in ("whole", "cut"))
    assert resumed == whole


def test_images_that_are_not_cut_yet_are_an_error(
    run_round: Callable[..., Any], tmp_path: Path
) -> None:
    run_round()
    with pytest.raises(ImageSetError, match=r"12 of the 12 images .* cut them first, .*bsgal-mask"):
        run_round()
    cut(tmp_path / "set", tmp_path / "set-pool")
    run_round()
    with pytest.raises(ImageSetError, match="8 of the 20 images"):
        run_round()


def test_larger_plan_continues_a_set_and_a_smaller_one_does_not(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    generate(make_plan(), make_stub()[0], tmp_path, batch_size=5)
    meta = (tmp_path / "meta.json").read_bytes()
    pipeline, stub = make_stub()
    counts = {1: 4, 2: 6, 3: 5}
    larger = generate(make_plan(images_per_category=counts), pipeline, tmp_path, batch_size=5)
    assert (len(larger), stub.calls) == (15, [3])
    assert {row.sample_id for row in larger} == {
        sample.sample_id for sample in make_plan(images_per_category=counts)
    }
    # Tools that read the set know it by this file.
    assert (tmp_path / "meta.json").read_bytes() == meta
    with pytest.raises(
        ConfigChangedError, match=r"6 images of category 2 \(thing_2\), and now with 4"
    ):
        generate(make_plan(), pipeline, tmp_path)


def test_bad_targets_are_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    for name in ("kept_target", "cap"):
        options = {"kept_target": 1, "cap": 1, name: 0}
        with pytest.raises(ValueError, match=f"`{name}` must be an int of at least 1, got 0"):
            next_round(make_plan(), tmp_path, tmp_path, max_redraws=0, **options)


def test_other_categories_are_refused(
    run_round: Callable[..., Any], make_plan: MakePlan, tmp_path: Path
) -> None:
    run_round()
    with pytest.raises(ConfigChangedError, match="planned for other categories: 4"):
        next_round(make_plan(4), tmp_path / "set", tmp_path, kept_target=1, cap=1, max_redraws=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"images_per_category": "5"}', "line 1: `images_per_category` must be an int of at"),
        ('{"images_per_category": {"1": 2.5}}', "line 1: `images_per_category` must be an int"),
        ('{"images": 5}', "line 1: it lacks 'images_per_category'"),
        ('{"images_per_category": {"1": 5}}', "must give a number to every category"),
        ("[]", "line 1: must be a JSON object"),
    ],
)
def test_damaged_rounds_are_refused(
    line: str, message: str, run_round: Callable[..., Any], tmp_path: Path
) -> None:
    run_round()
    (tmp_path / "set" / "rounds.jsonl").write_text(f"{line}\n")
    with pytest.raises(ImageSetError, match=message):
        run_round()
