from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from bsgal_mask import MissingModelError, find_u2netp
from bsgal_mask._settings_file import read_settings
from bsgal_mask.config import MaskConfig

README = Path(__file__).parents[1] / "README.md"
PICTURES = Path(__file__).parents[3] / "docs" / "pictures"


def test_the_readmes_python_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1 images: 1 kept (1 of 1 categories), 0 dropped"
    assert second.startswith("RGBA (8")


def test_the_readmes_settings_are_read(tmp_path):
    blocks = re.findall(r"^```toml\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        (tmp_path / "s.toml").write_text(block)
        assert read_settings(tmp_path / "s.toml", MaskConfig()) != MaskConfig()


def test_the_pictures_are_there_and_small():
    names = re.findall(r"\]\(([^)]+\.png)\)", README.read_text())
    assert names
    assert all((README.parent / name).stat().st_size < 200_000 for name in names)


def test_the_script_behind_the_picture_runs(make_image_set, drawn, tmp_path, monkeypatch):
    try:
        find_u2netp()
    except MissingModelError as error:
        pytest.skip(str(error))
    images = make_image_set({"a": drawn("disc")[0], "b": drawn("ring")[0], "c": drawn("disc")[0]})
    arguments = ["method_sheet.py", str(images), str(tmp_path / "sheet.png"), "a", "b"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(PICTURES / "method_sheet.py"), run_name="__main__")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (200, 400)
