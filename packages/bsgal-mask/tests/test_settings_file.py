from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from bsgal_mask import (
    Clip,
    ClipChoice,
    ClipSegSegmenter,
    RealCrops,
    Sam,
    SamBackgroundSegmenter,
    SamBoxSegmenter,
    SettingsError,
    SimilarityRule,
    U2NetSegmenter,
    build_pool,
)
from bsgal_mask._run_options import FLAGS
from bsgal_mask._settings_file import add_flags, field_docs, read_settings, settings_of
from bsgal_mask._settings_file import write_settings as write
from bsgal_mask.cli import _parser, main
from bsgal_mask.config import MaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """Hold one of each kind."""

    number: int = 3
    """A number, in pixels."""
    share: float = 0.25
    """A share of 100% of
    everything."""
    text: str = "plain"
    """A text."""
    switch: bool = False
    """A switch."""
    kind: Literal["round", "flat"] = "round"
    """A choice."""
    pair: tuple[float, float] | None = None
    """Two numbers; none leaves them out."""
    names: tuple[str, ...] = ("a", "b")
    """Any number of texts."""
    further: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Anything."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError("`number` must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    first: Inner = field(default_factory=Inner)
    second: Inner = field(default_factory=Inner)


HARD_TEXT = 'quote " back\\slash\ttab\nline \x7f \x00 é 🙂 # = [x]'


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"number": 10**18, "share": 1e-9, "switch": True, "kind": "flat", "pair": (0.1, 1e300)},
        {"text": HARD_TEXT, "names": (), "further": {HARD_TEXT: {"x": [1, "2", True, 0.5]}}},
    ],
)
def test_what_is_written_is_read_back(tmp_path, changes):
    settings = Outer(second=Inner(**changes))
    write(tmp_path / "s.toml", settings)
    assert read_settings(tmp_path / "s.toml", Outer()) == settings
    assert read_settings(tmp_path / "s.toml", Outer(first=Inner(number=9))) == settings


def test_every_field_is_written_with_its_meaning_type_and_default(tmp_path):
    write(tmp_path / "s.toml", Outer(first=Inner(number=4)))
    lines = (tmp_path / "s.toml").read_text().splitlines()
    assert lines[:5] == [
        "[first]",
        "# Hold one of each kind.",
        "#",
        "# A number, in pixels. (a whole number; default: 3)",
        "number = 4",
    ]
    assert "# A share of 100% of everything. (a finite number; default: 0.25)" in lines
    assert '# A choice. ("round" or "flat"; default: "round")' in lines
    assert "#pair =" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fisrt]\n", "table 'fisrt' is unknown; the nearest is 'first'"),
        ("first = 3\n", "first must be a table, got 3"),
        ("[first]\nnumbers = 3\n", r"\[first\] key 'numbers' is unknown; the nearest is 'number'"),
        ("[first]\nnumber = 3.0\n", r"\[first\] number must be a whole number, got 3.0"),
        ("[first]\nnumber = true\n", "number must be a whole number, got True"),
        ("[first]\nshare = '1'\n", "share must be a finite number, got '1'"),
        ("[first]\nshare = nan\n", "share must be a finite number, got nan"),
        ("[first]\nshare = inf\n", "share must be a finite number, got inf"),
        (f"[first]\nshare = 1{'0' * 400}\n", "share must be a finite number"),
        ("[first]\ntext = 1\n", "text must be text, got 1"),
        ("[first]\nswitch = 1\n", "switch must be true or false, got 1"),
        ("[first]\nkind = 'flatt'\n", 'kind must be "round" or "flat", got \'flatt\''),
        ("[first]\nkind = ['flat']\n", 'kind must be "round" or "flat", got'),
        ("[first]\npair = [1, 2, 3]\n", r"pair must be a list of 2 \(a finite number\), got"),
        ("[first]\npair = 1\n", "pair must be a list of 2"),
        ("[first]\nnames = ['a', 1]\n", r"names must be a list of \(text\), got"),
        ("[first]\nfurther = 1\n", "further must be a table, got 1"),
        ("[first]\nnumber = 0\n", r"\[first\] `number` must be at least 1"),
        ("[first\n", "is no TOML file"),
        ("x = 1\nx = 2\n", "is no TOML file"),
        ("x = " + "[" * 100_000, "is no TOML file"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_settings(tmp_path / "s.toml", Outer())
    assert str(tmp_path / "s.toml") in str(caught.value)


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read .*s\.toml"):
        read_settings(tmp_path / "s.toml", Outer())
    (tmp_path / "s.toml").write_bytes(b"# \xff")
    with pytest.raises(SettingsError, match="is no TOML file"):
        read_settings(tmp_path / "s.toml", Outer())


def test_a_file_that_exists_is_not_written_over(tmp_path):
    (tmp_path / "s.toml").write_text("mine")
    with pytest.raises(SettingsError, match="exists already"):
        write(tmp_path / "s.toml", Outer())
    assert (tmp_path / "s.toml").read_text() == "mine"


def test_what_toml_cannot_hold_is_not_half_written(tmp_path):
    with pytest.raises(SettingsError, match="cannot hold None"):
        write(tmp_path / "s.toml", Outer(second=Inner(further={"x": None})))
    assert not (tmp_path / "s.toml").exists()


def parsed(arguments: list[str]) -> Outer:
    parser = argparse.ArgumentParser()
    base = Outer(first=Inner(text="base"))
    names = [name for name in field_docs(Inner) if name != "further"]
    add_flags(parser, base, {f"--{name}": f"first.{name}" for name in names})
    return settings_of(parser.parse_args(arguments), base)


def test_a_flag_wins_over_the_file_and_the_file_over_the_base(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[first]\nnumber = 7\nshare = 1\nswitch = true\n")
    settings = parsed(["--config", str(file), "--number", "8", "--no-switch", "--pair", "1", "2"])
    assert settings.first == Inner(number=8, share=1.0, pair=(1.0, 2.0), text="base")
    assert type(settings.first.share) is float
    repeated = parsed(["--names", "x", "--names", "y", "--kind", "flat", "--switch"])
    assert repeated.first == Inner(names=("x", "y"), kind="flat", switch=True, text="base")


@pytest.mark.parametrize("arguments", [["--share", "nan"], ["--number", "0"]])
def test_a_wrong_flag_is_a_settings_error(arguments):
    with pytest.raises(SettingsError, match=r"command line: \[first\] "):
        parsed(arguments)


def test_flags_keys_and_fields_agree(tmp_path):
    """Every table and key that is written is a documented field, and every flag is one of them."""
    places = set()
    for table in dataclasses.fields(MaskConfig):
        part = getattr(MaskConfig(), table.name)
        names = [inner.name for inner in dataclasses.fields(part)]
        assert list(field_docs(type(part))) == names
        places |= {f"{table.name}.{name}" for name in names}
    assert set(FLAGS.values()) <= places
    write(tmp_path / "s.toml", MaskConfig())
    assert read_settings(tmp_path / "s.toml", MaskConfig()) == MaskConfig()
    options = vars(_parser().parse_args(["run", "x", "--out", "y", "--min-area", "0.5"]))
    assert {place for place in options if "." in place} == {"area.min_frac"}


@pytest.mark.parametrize(
    ("function", "table", "names"),
    [
        (build_pool, "pool", {"label_mask_threshold": "", "batch_size": "", "max_image_px": ""}),
        (U2NetSegmenter, "u2net", {"provider": "", "n_threads": "", "batch_size": ""}),
        (ClipSegSegmenter, "clipseg", {"template": "", "stretch": "", "min_peak": ""}),
        (SamBackgroundSegmenter, "sam", {"corner_margin_frac": ""}),
        (SamBoxSegmenter, "sam", {"margin_frac": "box_margin_frac"}),
        (ClipChoice, "clip", {"template": ""}),
        (Sam, "pool", {"device": "", "dtype": ""}),
        (RealCrops.from_lvis, "similarity", {"max_per_category": "", "cache": ""}),
        (SimilarityRule, "similarity", {"min_similarity": ""}),
    ],
)
def test_settings_have_the_defaults_of_what_they_set(function, table, names):
    part = getattr(MaskConfig(), table)
    for argument, name in names.items():
        default = inspect.signature(function).parameters[argument].default
        assert getattr(part, name or argument) == default


def test_models_have_the_batch_sizes_of_their_settings():
    config = MaskConfig()
    assert Clip.default_batch_size == config.clip.batch_size
    assert ClipSegSegmenter.default_batch_size == config.clipseg.batch_size
    assert Sam.default_batch_size == config.sam.batch_size


def test_the_command_writes_a_file_that_does_what_the_flags_do(
    make_image_set, drawn, tmp_path, capsys
):
    images = make_image_set({"a": drawn("disc")[0]})
    flags = ["--min-area", "0.01", "--object-colours"]
    file, pool = str(tmp_path / "mask.toml"), str(tmp_path / "pool")
    assert main(["run", "--write-config", file, *flags]) == 0
    assert main(["run", str(images), "--out", pool, *flags, "--quiet"]) == 0
    meta = (tmp_path / "pool/meta.json").read_bytes()
    config = json.loads(meta)["config"]
    assert config["filters"][0] == {"rule": "area", "min_frac": 0.01, "max_frac": 0.95}
    # The same pool goes on, so the settings are the same.
    assert main(["run", str(images), "--out", pool, "--config", file, "--quiet"]) == 0
    assert (tmp_path / "pool/meta.json").read_bytes() == meta
    other = ["--config", file, "--no-object-colours", "--quiet"]
    assert main(["run", str(images), "--out", pool, *other]) == 1
    assert "object_colours" in capsys.readouterr().err


def test_a_wrong_file_is_bad_usage_in_one_line(tmp_path, capsys):
    (tmp_path / "mask.toml").write_text("[pool]\ndevise = 'cuda'\n")
    command = ["run", "images", "--out", "pool", "--config", str(tmp_path / "mask.toml")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.endswith("mask.toml: [pool] key 'devise' is unknown; the nearest is 'device'\n")
    assert error.count("\n") == 1


def test_without_write_config_what_is_needed_is_still_needed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--config", "x.toml"])
    assert caught.value.code == 2
    assert "IMAGE_SET" in capsys.readouterr().err
