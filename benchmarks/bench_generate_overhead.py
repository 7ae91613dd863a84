"""What the runner costs over a bare diffusers loop that draws and saves the same images.

Both draw with the built-in pipeline, from the same prompts and seeds and in the same batches. The
bare loop calls the pipeline and saves what it returns as PNG files, no more. `generate` also checks
every image, hashes its file, moves it into place whole, writes its row and reads the set back. Both
must give the same pixels. The pipeline is loaded once, outside the timing; it draws 128 x 128
pixels in a fraction of a second, so the share that the runner adds is larger here than it is with
any larger model.

Usage: nox -s bench -- generate_overhead [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import require_tests, time_in_turn, write_result

CATEGORIES = ("banana", "bus", "key", "umbrella", "pizza", "fish", "clock", "carrot")
BATCH_SIZES = (1, 8)


def main() -> None:
    """Time both at every batch size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, steps and rounds")
    quick = parser.parse_args().quick
    require_tests("packages/bsgal-generate/tests/test_generate.py")
    n_images, steps, rounds = (8, 2, 3) if quick else (16, 20, 7)
    rows = [row for size in BATCH_SIZES for row in measure(n_images, steps, size, rounds)]
    ratios = {row["batch_size"]: row["over_bare"] for row in rows if row["case"] == "generate"}
    write_result(
        "generate_overhead",
        rows=rows,
        headline={
            "ours_over_bare": round(ratios[max(BATCH_SIZES)], 4),
            "ours_over_bare_batch_1": round(ratios[1], 4),
            "n_images": n_images,
            "num_inference_steps": steps,
            "mode": "quick" if quick else "full",
        },
        libraries=("torch", "diffusers", "transformers", "numpy", "pillow"),
    )


def measure(n_images: int, steps: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Time the bare loop and `generate` in turn on the same images; return a row for each."""
    from bsgal_generate import (
        Category,
        GenerationPlan,
        ImageSet,
        SamplingConfig,
        generate,
        load_pipeline,
    )

    plan = GenerationPlan(
        categories=tuple(Category(i, name) for i, name in enumerate(CATEGORIES, 1)),
        images_per_category=n_images // len(CATEGORIES),
    )
    config = SamplingConfig(num_inference_steps=steps, guidance_scale=3.0)
    pipeline = load_pipeline("tiny", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        bare_dir, ours_dir = Path(folder, "bare"), Path(folder, "ours")

        def bare() -> None:
            draw_and_save(pipeline.pipeline, list(plan), steps, batch_size, bare_dir)

        def ours() -> None:
            generate(plan, pipeline, ours_dir, config=config, batch_size=batch_size)

        cases: dict[str, Callable[[], object]] = {
            "bare loop": from_scratch(bare, bare_dir),
            "generate": from_scratch(ours, ours_dir),
        }
        timings = time_in_turn(cases, rounds=rounds)
        check_same_images(ImageSet.open(ours_dir), bare_dir)
    # The two of a round ran one after the other, so their ratio is free of slow drifts.
    pairs = zip(timings["generate"].rounds_s, timings["bare loop"].rounds_s, strict=True)
    over_bare = {"bare loop": 1.0, "generate": statistics.median(a / b for a, b in pairs)}
    return [
        {
            "case": name,
            "batch_size": batch_size,
            "n_images": len(plan),
            "median_s": timing.median_s,
            "quantiles_s": timing.quantiles_s(),
            "images_per_s": len(plan) / timing.median_s,
            "over_bare": over_bare[name],
        }
        for name, timing in timings.items()
    ]


def from_scratch(run: Callable[[], None], folder: Path) -> Callable[[], None]:
    """Return `run` with its folder removed before."""

    def rerun() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        run()

    return rerun


def draw_and_save(
    pipeline: Any, samples: list[Any], steps: int, batch_size: int, folder: Path
) -> None:
    """Draw and save as one does without a runner."""
    import torch

    folder.mkdir()
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = pipeline(
            prompt=[sample.prompt for sample in batch],
            generator=[torch.Generator("cpu").manual_seed(sample.seed) for sample in batch],
            num_inference_steps=steps,
            guidance_scale=3.0,
        ).images
        for sample, image in zip(batch, images, strict=True):
            image.save(folder / f"{sample.sample_id}.png")


def check_same_images(image_set: Any, bare_dir: Path) -> None:
    """Stop unless both drew the same pixels."""
    import numpy as np
    from PIL import Image

    for row in image_set:
        with Image.open(bare_dir / f"{row.sample_id}.png") as image:
            if not np.array_equal(np.asarray(image), image_set.read_image(row)):
                raise SystemExit(f"not comparable: {row.sample_id} differs between the two")


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the table from a result."""
    lines = [
        "| images at a time | bare loop, images/s | `generate`, images/s | time over bare |",
        "|---|---|---|---|",
    ]
    by_case = {(row["batch_size"], row["case"]): row for row in result["rows"]}
    for size in sorted({size for size, _ in by_case}):
        bare, ours = by_case[size, "bare loop"], by_case[size, "generate"]
        lines.append(
            f"| {size} | {bare['images_per_s']:.2f} | {ours['images_per_s']:.2f} "
            f"| {ours['over_bare']:.3f} |"
        )
    return {"overhead": "\n".join(lines)}


if __name__ == "__main__":
    main()
