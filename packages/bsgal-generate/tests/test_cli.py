from __future__ import annotations

import argparse
import inspect
import io
import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bsgal_generate import (
    TEMPLATES,
    DeviceWorkers,
    GenerationPlan,
    GenerationProgress,
    ImageSet,
    RayWorkers,
    SamplingConfig,
    generate,
    load_pipeline,
)
from bsgal_generate._settings_file import field_docs, read_settings, settings_of, write_settings
from bsgal_generate.cli import PIPELINE_FLAGS, PLAN_FLAGS, RUN_FLAGS, _parser, _workers, main
from bsgal_generate.config import GenerateConfig, PipelineConfig, PlanConfig, WorkersConfig
from bsgal_generate.progress import TextProgress, format_duration


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("banana\napple\n")
    return path


@pytest.fixture
def run_arguments(names: Path, stable_diffusion_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "run", "--categories", str(names), "--images-per-category", "2", "--device", "cpu",
        "--model", str(stable_diffusion_folder), "--num-inference-steps", "2",
        "--out", str(tmp_path / "set"),
    ]  # fmt: skip


def test_run_then_verify(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run_arguments) == 0
    out, err = capsys.readouterr()
    assert out == f"4 ok in {tmp_path / 'set'}\n"
    assert "4/4 images" in err
    assert len(ImageSet.open(tmp_path / "set")) == 4
    assert main(["verify", str(tmp_path / "set"), "--device", "cpu", "--rows", "2"]) == 0
    assert "largest difference: " in capsys.readouterr().out


def test_several_devices_give_several_workers(run_arguments: list[str]) -> None:
    one, two, ray = (
        settings_of(_parser().parse_args([*run_arguments, *further]), GenerateConfig())
        for further in ([], ["--device", "cpu"], ["--ray-workers", "3"])
    )
    assert _workers(one) is None
    workers = _workers(two)
    assert isinstance(workers, DeviceWorkers)
    assert len(workers) == 2
    with pytest.raises(ValueError, match="--device and --ray-workers exclude each other"):
        _workers(ray)
    workers = _workers(replace(ray, workers=replace(ray.workers, devices=())))
    assert isinstance(workers, RayWorkers)
    assert len(workers) == 3


def test_dry_run_counts_and_estimates_and_writes_nothing(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*run_arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 images planned, 0 there, 4 to draw\n" in out
    assert " s per image here, about " in out
    assert "1 workers like this device, 0.0 device hours" in out
    assert not (tmp_path / "set").exists()
    main(run_arguments)
    capsys.readouterr()
    assert main([*run_arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == "4 images planned, 4 there, 0 to draw\n"


def test_run_towards_a_number_of_kept_instances(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    target = [*run_arguments, "--kept-target", "3", "--cap", "3", "--pool", str(pool)]
    assert main(target) == 0
    assert "4 images in this round" in capsys.readouterr().out
    assert main(target) == 1
    assert "4 of the 4 images" in capsys.readouterr().err
    pool.mkdir()
    (pool / "meta.json").write_text('{"schema": "bsgal.instance_pool/1"}')
    for n_new in (2, 0):
        rows = [
            {"sample_id": row.sample_id, "status": "kept" if row.category_id == 1 else "dropped",
             "reason": "area: too small"}
            for row in ImageSet.open(tmp_path / "set")
        ]  # fmt: skip
        (pool / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(target) == 0
        out = capsys.readouterr().out
        assert (f"{n_new} images in this round" if n_new else "nothing to draw") in out
    assert "too few instances at the cap of 3 images: categories 2" in out
    assert len(ImageSet.open(tmp_path / "set")) == 6
    assert main([*run_arguments, "--kept-target", "3"]) == 1
    assert "--kept-target and --pool are given together" in capsys.readouterr().err


def test_number_of_images_must_be_given(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--categories", str(names)]) == 1
    assert "give --images-per-category, or --kept-target" in capsys.readouterr().err


def test_verify_fails_where_images_are_damaged(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run_arguments)
    next((tmp_path / "set").rglob("*.png")).write_bytes(b"")
    assert main(["verify", str(tmp_path / "set"), "--device", "cpu"]) == 1
    assert "is damaged" in capsys.readouterr().out


def test_changed_setting_fails_with_one_readable_line(
    run_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(run_arguments)
    capsys.readouterr()
    assert main([*run_arguments, "--seed", "1"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("bsgal-generate: ")
    assert "config.plan.seed was 0 and is now 1" in err
    assert err.count("\n") == 1


def test_interrupt_says_how_to_go_on(
    run_arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bsgal_generate.cli._pipeline", interrupt)
    assert main(run_arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_plan_counts_and_lists_without_a_model(
    names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--categories", str(names), "--images-per-category", "3"]
    assert main([*arguments, "--template", "single", "--template", "mine=my {name}"]) == 0
    out = capsys.readouterr().out
    assert "6 images of 2 categories, 4 prompts" in out
    assert "my banana" in out
    settings = names.with_name("s.toml")
    settings.write_text("[plan]\nnegative_prompt = 'text'\n")
    assert main([*arguments, "--list", "--config", str(settings)]) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(samples) == 6
    assert {sample["negative_prompt"] for sample in samples} == {"text"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--categories", "nothing.txt"], "category file nothing.txt does not exist"),
        (["--template", "nope"], "unknown template 'nope'; known are single"),
        (["--template", "x=no gap"], "must contain {name} or {noun}"),
        (["--template", "divergen"], "needs a definition"),
        (["--images-per-category", "0"], "`images_per_category` must be an int of at least 1"),
    ],
)
def test_bad_input_fails_with_its_reason(
    arguments: list[str], message: str, names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["plan", "--categories", str(names), "--images-per-category", "1"]
    assert main([*first, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_bad_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run"])
    assert caught.value.code == 2


def test_flags_keys_and_fields_agree(tmp_path: Path) -> None:
    places = set()
    for table in fields(GenerateConfig):
        part = getattr(GenerateConfig(), table.name)
        names = [inner.name for inner in fields(part)]
        assert list(field_docs(type(part))) == names
        places |= {f"{table.name}.{name}" for name in names}
    flags = PLAN_FLAGS | PIPELINE_FLAGS | RUN_FLAGS
    assert set(flags.values()) <= places
    required = ["run", "--categories", "c", "--out", "o"]
    given = _parser().parse_args([*required, "--num-inference-steps", "3"])
    assert {place for place in vars(given) if "." in place} == {"sampling.num_inference_steps"}
    settings = GenerateConfig(
        sampling=SamplingConfig(pipeline_arguments={"eta": 0.5, "extra": {"a": [1, True]}})
    )
    write_settings(tmp_path / "s.toml", settings)
    assert read_settings(tmp_path / "s.toml", GenerateConfig()) == settings
    options = _parser().parse_args([*required, "--config", str(tmp_path / "s.toml")])
    assert settings_of(options, GenerateConfig()) == settings


def test_settings_have_the_defaults_of_what_they_set() -> None:
    plan = {field.name: field.default for field in fields(GenerationPlan)}
    assert (PlanConfig().seed, PlanConfig().negative_prompt) == (plan["seed"], None)
    assert tuple(TEMPLATES[name] for name in PlanConfig().templates) == plan["templates"]
    signature = inspect.signature(load_pipeline).parameters
    assert {name: signature[name].default for name in asdict(PipelineConfig())} == asdict(
        PipelineConfig()
    )
    assert (
        inspect.signature(generate).parameters["batch_size"].default == WorkersConfig().batch_size
    )


def test_a_set_goes_on_with_the_file_that_its_flags_wrote(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "s.toml")
    assert main([*run_arguments, "--seed", "3", "--write-config", file]) == 0
    assert not (tmp_path / "set").exists()
    assert main([*run_arguments, "--seed", "3"]) == 0
    meta = (tmp_path / "set/meta.json").read_bytes()
    subject = [*run_arguments[:3], *run_arguments[-2:]]
    assert main([*subject, "--config", file, "--images-per-category", "3"]) == 0
    assert len(ImageSet.open(tmp_path / "set")) == 6
    assert (tmp_path / "set/meta.json").read_bytes() == meta
    capsys.readouterr()
    more = ["--images-per-category", "3", "--seed", "4"]
    assert main([*subject, "--config", file, *more]) == 1
    assert "config.plan.seed was 3 and is now 4" in capsys.readouterr().err


def test_settings_are_written_without_categories_or_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    assert main(["run", "--write-config", str(file), "--model", "sd", "--device", "cpu"]) == 0
    settings = read_settings(file, GenerateConfig())
    assert (settings.pipeline.model, settings.workers.devices) == ("sd", ("cpu",))


def test_a_wrong_settings_file_is_bad_usage_in_one_line(
    names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = names.with_name("s.toml")
    file.write_text("[sampling]\nnum_inference_step = 3\n")
    assert main(["plan", "--categories", str(names), "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert "[sampling] key 'num_inference_step' is unknown; the nearest is" in error
    assert "'num_inference_steps'" in error
    assert error.count("\n") == 1
    file.write_text("[sampling.pipeline_arguments]\ngenerator = 3\n")
    assert main(["plan", "--categories", str(names), "--config", str(file)]) == 2
    assert "[sampling] `pipeline_arguments` must not hold 'generator'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"num_inference_steps": 0},
        {"height": -8},
        {"width": 1.5},
        {"guidance_scale": float("nan")},
        {"max_redraws": -1},
        {"blank_std": float("inf")},
        {"pipeline_arguments": {"generator": 3}},
        {"pipeline_arguments": {"height": 64}},
        {"pipeline_arguments": {"eta": float("nan")}},
        {"pipeline_arguments": {"original_size": (64, 64)}},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must "):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (18120, "5 h 02 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (
            Terminal(),
            "\r\x1b[K0/4 images\r\x1b[K2/4 images, 0.50 images/s, 4 s left, 1 blank"
            "\r\x1b[K4/4 images, 0.50 images/s, 0 s left, 1 blank\n",
        ),
        (io.StringIO(), "0/4 images\n4/4 images, 0.50 images/s, 0 s left, 1 blank\n"),
    ],
)
def test_progress_rewrites_its_line_on_a_terminal_only(stream: io.StringIO, expected: str) -> None:
    show: Callable[[GenerationProgress], None] = TextProgress(stream)
    show(GenerationProgress(0, 4, 0, 0.0, {}))
    show(GenerationProgress(2, 4, 3, 6.0, {"ok": 2, "blank": 1}))
    show(GenerationProgress(4, 4, 5, 10.0, {"ok": 4, "blank": 1}))
    assert stream.getvalue() == expected


def test_help_of_every_command_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    actions = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    commands = list(actions[0].choices)
    assert commands == ["run", "plan", "verify", "funnel"]
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
    assert "grey levels" in capsys.readouterr().out


def test_funnel_prints_a_table(
    run_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run_arguments)
    capsys.readouterr()
    assert main(["funnel", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "4", "4", "-"]
