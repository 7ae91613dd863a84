"""What our code around a model costs: `u2net` against bare inference on the same images.

Eight photograph-like images of 512 x 512 px, u2netp, one batch of 8. `raw` runs the model on inputs
that are ready in memory, in a session with the same threads and the same freed batch; `ours` is
`U2NetSegmenter.segment`, which adds resizing and normalising the images and scaling the masks up;
`single` is `raw` one image at a time. `border` and `pool` (a whole run with `u2net`, from PNG files
to a pool on the disk) are there to know, not for the headline.

Usage: nox -s bench -- mask_speed [--quick] [--rounds=N]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _harness import require_tests, time_in_turn, write_result
from numpy.typing import NDArray

BATCH, SIDE_PX, N_THREADS = 8, 512, 2
WHAT = {
    "raw": "model alone, batch of 8",
    "ours": "`U2NetSegmenter.segment`, batch of 8",
    "single": "model alone, one by one",
    "border": "`BorderSegmenter.segment`",
    "pool": "`build_pool` with `u2net`, PNG to PNG",
}


def main() -> None:
    """Time the cases in turn and write the result."""
    import cv2

    from bsgal_mask import BorderSegmenter, U2NetSegmenter, build_pool
    from bsgal_mask._u2net import preprocess

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds per case")
    parser.add_argument("--quick", action="store_true", help="two rounds; writes no result")
    options = parser.parse_args()
    require_tests("packages/bsgal-mask/tests/test_u2net.py")
    cv2.setNumThreads(N_THREADS)
    images = photographs()
    names = [""] * BATCH
    ours = U2NetSegmenter(n_threads=N_THREADS, batch_size=BATCH)
    border = BorderSegmenter()
    inputs = np.stack([preprocess(image) for image in images])

    def run(batch: NDArray[np.float32]) -> None:
        ours._session.run([ours._output], {ours._input: batch})

    with tempfile.TemporaryDirectory() as folder:
        source = image_set(Path(folder) / "images", images)

        def pool() -> None:
            shutil.rmtree(Path(folder) / "pool", ignore_errors=True)
            build_pool(source, Path(folder) / "pool", methods=[ours], batch_size=BATCH)

        cases = {
            "raw": lambda: run(inputs),
            "ours": lambda: ours.segment(images, names),
            "single": lambda: [run(inputs[index : index + 1]) for index in range(BATCH)],
            "border": lambda: border.segment(images, names),
            "pool": pool,
        }
        timings = time_in_turn(cases, rounds=2 if options.quick else options.rounds)
    rows = []
    for name, timing in timings.items():
        low, median, high = timing.quantiles_s()
        rows.append(
            {
                "case": name,
                "ms_per_image": 1e3 * median / BATCH,
                "q20_ms_per_image": 1e3 * low / BATCH,
                "q80_ms_per_image": 1e3 * high / BATCH,
                "n_threads": N_THREADS,
            }
        )
        print(f"{name:<8} {1e3 * median / BATCH:8.1f} ms per image")
    raw_s = timings["raw"].median_s
    headline: dict[str, float | int | str] = {
        "ours_over_raw": round(timings["ours"].median_s / raw_s, 4),
        "single_over_batched": round(timings["single"].median_s / raw_s, 4),
        "batch_size": BATCH,
        "n_threads": N_THREADS,
    }
    if options.quick:
        print(json.dumps(headline, indent=1))
        print("not written: two rounds say little")
        return
    libraries = ("numpy", "opencv-python-headless", "pillow", "onnxruntime", "bsgal-mask")
    write_result("mask_speed", rows=rows, headline=headline, libraries=libraries)


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table: milliseconds per image of every case."""
    lines = ["| what | ms per image | to the model alone |", "|---|---|---|"]
    times = {row["case"]: row["ms_per_image"] for row in result["rows"]}
    for case, what in WHAT.items():
        lines.append(f"| {what} | {times[case]:.1f} | {times[case] / times['raw']:.2f} |")
    return {"times": "\n".join(lines)}


def photographs() -> list[NDArray[np.uint8]]:
    """Return images of an object on a plain background with texture and noise."""
    import cv2

    rng = np.random.default_rng(0)
    images = []
    for _ in range(BATCH):
        picture = rng.uniform(190, 240, 3) + rng.normal(0, 4, (SIDE_PX, SIDE_PX, 3))
        coarse = rng.uniform(0, 200, (24, 24, 3)).astype(np.float32)
        texture = cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        axes = tuple(int(side) for side in rng.integers(90, 180, 2))
        cv2.ellipse(mask, (256, 256), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        picture[mask > 0] = texture[mask > 0]
        images.append(np.clip(picture, 0, 255).astype(np.uint8))
    return images


def image_set(root: Path, images: list[NDArray[np.uint8]]) -> Path:
    """Write images as an image set and return its folder."""
    from PIL import Image

    (root / "images").mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps({"schema": "bsgal.image_set/1"}))
    rows = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(root / f"images/{index}.png")
        rows.append(
            {
                "sample_id": f"s{index}",
                "category_id": 1,
                "category_name": "thing",
                "prompt": "a thing",
                "file": f"images/{index}.png",
                "status": "ok",
            }
        )
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


if __name__ == "__main__":
    main()
