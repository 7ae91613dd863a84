"""The demo at its smallest: all stages, reuse, and a page that holds the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsgal_train.demo import DemoSettings, run_demo


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    settings = DemoSettings(images_per_category=1, num_inference_steps=6, train_steps=4)
    run_demo(folder, settings)
    return folder


def test_demo_ends_with_a_page_of_pictures(demo_folder: Path) -> None:
    page = (demo_folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") > 3
    assert "continued with everything pasted" in page
    assert "Rejected, and why" in page
    assert "http" not in page


def test_second_start_reuses_finished_stages(
    demo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DemoSettings(images_per_category=1, num_inference_steps=6, train_steps=4)
    before = (demo_folder / "judged" / "results.json").stat().st_mtime_ns
    run_demo(demo_folder, settings)
    assert capsys.readouterr().out.count("(done before)") == 8
    assert (demo_folder / "judged" / "results.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(demo_folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a demo with train_steps = 4, now asked for 5"):
        run_demo(
            demo_folder,
            DemoSettings(images_per_category=1, num_inference_steps=6, train_steps=5),
        )
