"""Sample a trained pipeline: a sheet of pictures, a check of the text conditioning, and timings.

Run `python models/tiny_generator/sample_sheet.py FOLDER --sheet samples.png --renders renders.npy`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw
from text import main_caption, spoken_name

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES

N_STEPS = 20
GUIDANCE_SCALE = 3.0
_THUMBNAIL_PX = 24
_CELL_PX = 96
_LABEL_PX = 13
_CATEGORIES_PER_ROW = 5


def main() -> None:
    """Parse the command line, sample and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="folder of the pipeline")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--renders", type=Path, help="renders.npy, for the conditioning check")
    parser.add_argument("--images-per-category", type=int, default=2, help="default 2")
    arguments = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(arguments.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    images = sample(pipeline, arguments.images_per_category)
    per_image_s = (time.perf_counter() - started) / (images.shape[0] * images.shape[1])
    print(f"{per_image_s:.2f} s per image, {torch.get_num_threads()} threads, {N_STEPS} steps")
    if arguments.sheet:
        draw_sheet(images).quantize(256, method=Image.Quantize.MEDIANCUT).save(arguments.sheet)
    if arguments.renders:
        report_conditioning(images, np.load(arguments.renders, mmap_mode="r"))


def sample(pipeline: DiffusionPipeline, n_per_category: int) -> npt.NDArray[np.uint8]:
    """Sample every category with seeds of its own.

    Returns:
        uint8 RGB `(n_categories, n_per_category, H, W, 3)`.
    """
    rows = []
    for category in BUILTIN_CATEGORIES:
        seeds = [1000 * category.category_id + index for index in range(n_per_category)]
        result = pipeline(
            [main_caption(category)] * n_per_category,
            num_inference_steps=N_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        rows.append((result.images * 255.0 + 0.5).astype(np.uint8))
    return np.stack(rows)


def draw_sheet(images: npt.NDArray[np.uint8]) -> Image.Image:
    """Lay the samples out with the names of their categories."""
    n_categories, n_each = images.shape[:2]
    n_rows = -(-n_categories // _CATEGORIES_PER_ROW)
    block_wh = (n_each * _CELL_PX + 6, _CELL_PX + _LABEL_PX)
    sheet = Image.new("RGB", (_CATEGORIES_PER_ROW * block_wh[0], n_rows * block_wh[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for index, category in enumerate(BUILTIN_CATEGORIES):
        left = index % _CATEGORIES_PER_ROW * block_wh[0]
        top = index // _CATEGORIES_PER_ROW * block_wh[1]
        pen.text((left + 2, top), spoken_name(category.name), fill="black")
        for number in range(n_each):
            cell = Image.fromarray(images[index, number]).resize(
                (_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS
            )
            sheet.paste(cell, (left + number * _CELL_PX, top + _LABEL_PX))
    return sheet


def report_conditioning(images: npt.NDArray[np.uint8], renders: npt.NDArray[np.uint8]) -> None:
    """Print how often the nearest training render has the category that was asked for."""
    n_categories, n_each = images.shape[:2]
    known = np.concatenate([_thumbnails(block) for block in renders])
    labels = np.repeat(np.arange(n_categories), renders.shape[1])
    hits = np.empty((n_categories, n_each), dtype=bool)
    for index, block in enumerate(images):
        vectors = _thumbnails(block)
        distances = (known**2).sum(1)[None] - 2.0 * vectors @ known.T
        hits[index] = labels[distances.argmin(1)] == index
    print(f"nearest render has the prompted category: {hits.sum()} of {hits.size}")
    for category, row in zip(BUILTIN_CATEGORIES, hits, strict=True):
        if not row.all():
            print(f"  {spoken_name(category.name)}: {row.sum()} of {row.size}")


def _thumbnails(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    pictures = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0
    small = torch.nn.functional.interpolate(pictures, (_THUMBNAIL_PX, _THUMBNAIL_PX), mode="area")
    return small.flatten(1).numpy()


if __name__ == "__main__":
    main()
