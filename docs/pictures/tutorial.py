"""Make the tutorial's pictures from the folder in which its commands were given.

Usage: python docs/pictures/tutorial.py FOLDER [--browser chromium]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
SIDE_PX = 80


def main() -> None:
    """Write what was drawn and cut out, the preview, and the top of the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the tutorial's commands were given")
    parser.add_argument("--browser", default="chromium", help="command of a headless Chromium")
    options = parser.parse_args()
    cut_out_sheet(options.folder / "images", options.folder / "pool").save(
        HERE / "tutorial_cut_outs.jpg", quality=85
    )
    with Image.open(options.folder / "preview.png") as preview:
        preview = preview.convert("RGB")
    top = preview.crop((0, 0, preview.width, preview.height // 2))
    top.thumbnail((760, 760))
    top.save(HERE / "tutorial_preview.jpg", quality=80)
    report = (options.folder / "runs/instance/report.html").resolve()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [options.browser, "--headless", "--no-sandbox", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--window-size=900,1100"]
        command += [f"--screenshot={shot}", report.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(shot) as picture:
            picture.convert("RGB").save(HERE / "tutorial_report.jpg", quality=75)


def cut_out_sheet(images: Path, pool: Path) -> Image.Image:
    """Return nine drawn images in a row and, under each, its cut-out on a check."""
    lines = (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [row for row in map(json.loads, lines) if row["status"] == "kept"][::4][:9]
    sheet = Image.new("RGB", (SIDE_PX * len(kept), 2 * SIDE_PX), (90, 175, 150))
    for column, row in enumerate(kept):
        left = column * SIDE_PX
        with Image.open(images / f"images/{row['category_id']}/{row['sample_id']}.png") as drawn:
            sheet.paste(drawn.convert("RGB").resize((SIDE_PX, SIDE_PX)), (left, 0))
        with Image.open(pool / row["file"]) as instance:
            instance.thumbnail((SIDE_PX - 8, SIDE_PX - 8))
            margin = (SIDE_PX - instance.width) // 2, (SIDE_PX - instance.height) // 2
            place = left + margin[0], SIDE_PX + margin[1]
            sheet.paste(instance, place, instance)
    return sheet


if __name__ == "__main__":
    main()
