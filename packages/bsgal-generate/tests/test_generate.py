from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bsgal_generate import (
    GenerationPlan,
    GenerationProgress,
    ImagePipeline,
    ImageSet,
    SamplingConfig,
    generate,
    verify,
)
from bsgal_generate._judge import judge
from bsgal_generate._pipelines import Drawing
from bsgal_generate.errors import ConfigChangedError, NonfiniteImagesError, OutOfMemoryError

MakeStub = Callable[..., tuple[ImagePipeline, Any]]
MakePlan = Callable[..., GenerationPlan]


def rows_of(image_set: ImageSet) -> dict[str, dict[str, Any]]:
    return {row.sample_id: asdict(row) for row in image_set}


def spoil_every_third(kind: str) -> Callable[[str, int], str | None]:
    return lambda prompt, seed: kind if seed % 3 == 0 else None


def test_every_sample_gets_its_image_and_row(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan(negative_prompt="text")
    pipeline, _ = make_stub()
    config = SamplingConfig(num_inference_steps=3, height=9, width=7)
    image_set = generate(plan, pipeline, tmp_path, config=config)
    assert [row.sample_id for row in image_set] == [sample.sample_id for sample in plan]
    for row, sample in zip(image_set, plan, strict=True):
        assert (row.prompt, row.negative_prompt, row.seed) == (sample.prompt, "text", sample.seed)
        assert (row.num_inference_steps, row.guidance_scale) == (3, 7.5)
        assert (row.height, row.width, row.status, row.model) == (9, 7, "ok", "stub")
        assert image_set.read_image(row).shape == (9, 7, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_image_does_not_depend_on_its_batch(
    batch_size: int, make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan()
    together = generate(plan, make_stub()[0], tmp_path / "all", batch_size=12)
    apart = generate(plan, make_stub()[0], tmp_path / "cut", batch_size=batch_size)
    assert rows_of(together) == rows_of(apart)


def test_one_image_can_be_made_again_alone(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan()
    image_set = generate(plan, make_stub()[0], tmp_path, batch_size=5)
    pipeline, _ = make_stub()
    for row, sample in reversed(list(zip(image_set, plan, strict=True))):
        alone = pipeline.draw([sample], SamplingConfig()).pixels[0]
        np.testing.assert_array_equal(image_set.read_image(row), (alone * 255).round())


@pytest.mark.parametrize(
    ("kind", "status"), [("flag", "flagged"), ("blank", "blank"), ("nan", "nonfinite")]
)
def test_bad_images_are_drawn_again_with_recorded_seeds(
    kind: str, status: str, make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan(n_categories=5, images_per_category=6)
    pipeline, _ = make_stub(fault=spoil_every_third(kind))
    image_set = generate(plan, pipeline, tmp_path, config=SamplingConfig(max_redraws=20))
    assert len(image_set) == len(plan)
    assert all(row.status == "ok" and row.file for row in image_set)
    rejected = [row for row in image_set.attempts if row.status != "ok"]
    assert rejected
    assert all(row.status == status and row.file is None and row.reason for row in rejected)
    assert all(row.seed % 3 == 0 for row in rejected)
    seeds = [row.seed for row in image_set.attempts]
    assert len(set(seeds)) == len(seeds)
    assert len(list(tmp_path.rglob("*.png"))) == len(plan)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pipeline_that_gives_no_finite_image_ends_the_run(
    batch_size: int, make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    pipeline, stub = make_stub(fault=lambda prompt, seed: "nan")
    with pytest.raises(NonfiniteImagesError, match=r"all NaN or infinite, .* in float32; load it"):
        generate(make_plan(), pipeline, tmp_path, batch_size=batch_size)
    assert sum(stub.calls) == max(batch_size, 2)


def test_batch_without_a_finite_image_amid_others_is_drawn_again(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan(2, 4)
    bad = {sample.seed for sample in plan if sample.category_id == 2}
    pipeline, _ = make_stub(fault=lambda prompt, seed: "nan" if seed in bad else None)
    image_set = generate(plan, pipeline, tmp_path, batch_size=4)
    assert [row.attempt for row in image_set] == [0] * 4 + [1] * 4


def test_alpha_of_a_pipeline_is_stored_and_verified(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    image_set = generate(make_plan(), make_stub(alpha=True)[0], tmp_path)
    images = [image_set.read_image(row) for row in image_set]
    assert {image.shape for image in images} == {(8, 12, 4)}
    assert all(image[..., 3].std() > 10 for image in images)
    report = verify(image_set, make_stub(alpha=True)[0], n_rows=100)
    assert (report.largest_difference, report.damaged) == (0, {})
    assert len(report.grey_level_differences) == len(image_set)
    flat = verify(image_set, make_stub()[0], n_rows=1)
    assert re.search(r"shape \(8, 12, 4\) is stored, .* \(8, 12, 3\) was drawn", str(flat.damaged))


def test_transparent_image_is_blank_whatever_its_colours() -> None:
    colours = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    for alpha, status in ((0.0, "blank"), (1.0, "ok")):
        pixels = np.concatenate([colours, np.full((1, 8, 8, 1), alpha, np.float32)], axis=3)
        drawing = Drawing(pixels, flagged=(False,), nonfinite=(False,), decoded_again=(False,))
        assert judge(drawing, 0, 1.0).status == status


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 1), (1, 8, 8, 3)])
def test_pipeline_that_returns_no_images_is_named(
    shape: tuple[int, ...], make_stub: MakeStub, make_plan: MakePlan
) -> None:
    pipeline, stub = make_stub()
    output = SimpleNamespace(images=np.zeros(shape, np.float32))
    stub.__class__ = type("Other", (type(stub),), {"__call__": lambda self, prompt, **_: output})
    with pytest.raises(ValueError, match="Other must return one RGB or RGBA image per prompt"):
        pipeline.draw(list(make_plan(1, 2)), SamplingConfig(num_inference_steps=1))


def test_redraws_stop_at_the_budget(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    pipeline, stub = make_stub(fault=lambda prompt, seed: "blank")
    config = SamplingConfig(max_redraws=2)
    image_set = generate(make_plan(1, 2), pipeline, tmp_path, config=config)
    assert [(row.status, row.attempt) for row in image_set] == [("blank", 2)] * 2
    assert len(image_set.attempts) == 6
    n_calls = len(stub.calls)
    generate(make_plan(1, 2), pipeline, tmp_path, config=config)
    assert len(stub.calls) == n_calls


def test_finished_set_is_not_drawn_again(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    generate(make_plan(), make_stub()[0], tmp_path)
    pipeline, stub = make_stub()
    generate(make_plan(), pipeline, tmp_path)
    assert stub.calls == []


def test_damaged_and_missing_images_are_redone_to_the_same_set(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    before = rows_of(generate(make_plan(), make_stub()[0], tmp_path, batch_size=4))
    files = sorted(tmp_path.rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    files[7].unlink()
    pipeline, stub = make_stub()
    image_set = generate(make_plan(), pipeline, tmp_path, batch_size=4)
    assert rows_of(image_set) == before
    assert all(image_set.has_file(row) for row in image_set)
    # Whole batches are drawn again, so that rounding is the same; the untouched one is not.
    assert stub.calls == [4, 4]
    assert len(image_set.attempts) == len(before) + 2


@pytest.mark.parametrize("stop_after", [0, 1, 2, 5])
def test_interrupted_run_continues_to_the_same_rows(
    stop_after: int, make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    fault = spoil_every_third("flag")
    whole = generate(make_plan(), make_stub(fault=fault)[0], tmp_path / "whole", batch_size=3)
    calls = itertools.count()

    def interrupt(progress: GenerationProgress) -> None:
        if next(calls) == stop_after:
            raise KeyboardInterrupt

    pipeline, stub = make_stub(fault=fault)
    with pytest.raises(KeyboardInterrupt):
        generate(make_plan(), pipeline, tmp_path / "cut", batch_size=3, progress=interrupt)
    assert len(ImageSet.open(tmp_path / "cut")) == min(3 * stop_after, 12)
    resumed = generate(make_plan(), pipeline, tmp_path / "cut", batch_size=3)
    assert [asdict(row) for row in resumed.attempts] == [asdict(row) for row in whole.attempts]
    n_drawn = sum(stub.calls)
    assert n_drawn == len(whole.attempts)


def test_changed_settings_are_refused_by_name(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    pipeline, _ = make_stub()
    generate(make_plan(), pipeline, tmp_path)
    for plan, config, difference in [
        (make_plan(seed=1), None, "config.plan.seed was 0 and is now 1"),
        (make_plan(n_categories=2), None, "config.plan.categories.3 was .* and is now missing"),
        (
            make_plan(),
            SamplingConfig(guidance_scale=2.0),
            "config.sampling.guidance_scale was 7.5 and is now 2.0",
        ),
    ]:
        with pytest.raises(ConfigChangedError, match=difference):
            generate(plan, pipeline, tmp_path, config=config)
    generate(make_plan(), pipeline, tmp_path, config=SamplingConfig(guidance_scale=7.5))


def test_batch_is_halved_when_memory_runs_out(
    make_stub: MakeStub,
    make_plan: MakePlan,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline, stub = make_stub(fits=3)
    image_set = generate(make_plan(), pipeline, tmp_path / "small", batch_size=8)
    assert max(stub.calls) == 2
    assert caplog.messages == [
        "out of memory; going on with 4 images at a time",
        "out of memory; going on with 2 images at a time",
    ]
    roomy = generate(make_plan(), make_stub()[0], tmp_path / "roomy", batch_size=8)
    assert rows_of(image_set) == rows_of(roomy)


def test_single_image_that_does_not_fit_is_an_error(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match="a single image; use smaller images"):
        generate(make_plan(), make_stub(fits=0)[0], tmp_path)


def test_other_failures_of_the_pipeline_are_not_taken_for_lack_of_memory(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    def fail(prompt: str, seed: int) -> str | None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        generate(make_plan(), make_stub(fault=fail)[0], tmp_path)


def test_progress_tells_counts_speed_and_time_left(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    states: list[GenerationProgress] = []
    pipeline, _ = make_stub(fault=spoil_every_third("blank"))
    generate(make_plan(), pipeline, tmp_path, batch_size=5, progress=states.append)
    first, last = states[0], states[-1]
    assert (first.n_done, first.n_total, first.images_per_s, first.left_s) == (0, 12, None, None)
    assert (last.n_done, last.left_s) == (12, 0)
    assert last.n_drawn == sum(last.n_by_status.values()) > 12
    assert last.images_per_s is not None
    assert [s.n_done for s in states] == sorted(s.n_done for s in states)
    states.clear()
    generate(make_plan(), pipeline, tmp_path, batch_size=5, progress=states.append)
    assert [(s.n_done, s.n_drawn) for s in states] == [(12, 0)]


def test_setting_the_pipeline_does_not_take_is_refused_before_anything_is_written(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    config = SamplingConfig(pipeline_arguments={"eta": 0.5})
    with pytest.raises(ValueError, match="StubPipeline does not take eta"):
        generate(make_plan(), make_stub()[0], tmp_path / "set", config=config)
    assert not (tmp_path / "set").exists()


def test_further_arguments_reach_the_pipeline_and_are_recorded(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    plain = generate(make_plan(), make_stub()[0], tmp_path / "plain")
    config = SamplingConfig(pipeline_arguments={"brightness": 0.25})
    brighter = generate(make_plan(), make_stub()[0], tmp_path / "brighter", config=config)
    for before, after in zip(plain, brighter, strict=True):
        assert brighter.read_image(after).mean() > plain.read_image(before).mean()
    recorded = brighter.meta["config"]["sampling"]
    assert recorded["pipeline_arguments"] == {"brightness": 0.25}
    assert "pipeline_arguments" not in plain.meta["config"]["sampling"]
    assert verify(brighter, make_stub()[0]).largest_difference == 0
    with pytest.raises(ConfigChangedError, match=r"pipeline_arguments\.brightness was 0\.25"):
        generate(
            make_plan(),
            make_stub()[0],
            tmp_path / "brighter",
            config=SamplingConfig(pipeline_arguments={"brightness": 0.5}),
        )


def test_bad_batch_size_is_refused(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`batch_size` must be an int of at least 1, got 0"):
        generate(make_plan(), make_stub()[0], tmp_path, batch_size=0)


def test_memory_does_not_grow_with_the_number_of_batches(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    traced: list[int] = []
    config = SamplingConfig(height=64, width=64)
    plan = make_plan(n_categories=4, images_per_category=100)
    tracemalloc.start()
    try:
        generate(
            plan, make_stub()[0], tmp_path, config=config, batch_size=4,
            progress=lambda _: traced.append(tracemalloc.get_traced_memory()[0]),
        )  # fmt: skip
    finally:
        tracemalloc.stop()
    assert len(traced) == 101
    # One kept image of every batch from the 20th to the 100th would be 980 kB as 8-bit pixels.
    assert traced[100] - traced[20] < 200_000


def test_meta_names_model_versions_and_config(
    make_stub: MakeStub, make_plan: MakePlan, tmp_path: Path
) -> None:
    generate(make_plan(), make_stub()[0], tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["schema"] == "bsgal.image_set/1"
    assert meta["model"]["id"] == "stub"
    assert meta["model"]["revision"] is None
    assert meta["model"]["weight_hash"].startswith("sha256:")
    assert {"torch", "diffusers", "transformers", "bsgal-generate"} <= meta["versions"].keys()
    assert meta["config"]["pipeline"]["class"] == "StubPipeline"
    assert meta["config"]["pipeline"]["dtype"] == "float32"
    assert meta["config"]["pipeline"]["scheduler"]["class"] == "SimpleNamespace"
    assert meta["execution"] == {"batch_size": 8, "device": "cpu", "n_workers": 1}
    assert meta["config"]["plan"] == make_plan().describe()
