"""Command line: look at pastes, write an augmented data set, summarise a pool."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bsgal_paste import __version__
from bsgal_paste._compose import compose
from bsgal_paste._copy_paste import CopyPaste, sample_rng
from bsgal_paste._donors import LvisDonors
from bsgal_paste._lvis import Lvis, load_lvis, read_annotated_image
from bsgal_paste._pool import InstancePool
from bsgal_paste._pool_sources import open_any_pool, open_folder_pool, write_xpaste_json
from bsgal_paste._preview import contact_sheet, draw_result
from bsgal_paste._scale import ScaleStatistics
from bsgal_paste._settings_file import add_flags, settings_of, write_settings
from bsgal_paste.config import PRESETS, PasteConfig, Settings
from bsgal_paste.errors import SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 1 failure, 2 bad usage."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        options.run(options)
    except SettingsError as error:
        print(f"bsgal-paste: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"bsgal-paste: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bsgal-paste: stopped; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(prog="bsgal-paste", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    preview = commands.add_parser("preview", help="draw a contact sheet of pasted images")
    _add_input_options(preview)
    preview.add_argument("--out", type=Path, required=True, help="image file to write")
    preview.add_argument("--n-images", type=int, default=12, help="images on it (default 12)")
    preview.add_argument("--n-columns", type=int, default=4, help="images in a row (default 4)")
    preview.add_argument("--tile-px", type=int, default=480, help="image size, px (default 480)")
    add_flags(preview, Settings(), PASTE_FLAGS, required=None)
    preview.set_defaults(run=run_preview)

    composer = commands.add_parser(
        "compose", help="write an augmented LVIS data set; run again to go on after a stop"
    )
    required = _add_input_options(composer)
    out = composer.add_argument("--out", type=Path, required=True, help="folder to write")
    composer.add_argument("--n-workers", type=int, default=1, help="processes (default 1)")
    composer.add_argument("--dry-run", action="store_true", help="say what would be written")
    add_flags(composer, Settings(), PASTE_FLAGS | COMPOSE_FLAGS, required=(*required, out))
    composer.set_defaults(run=run_compose)

    card = commands.add_parser("card", help="print a summary of a pool as JSON")
    card.add_argument("pool", type=Path, help=_POOL_HELP)
    card.add_argument(
        "--annotations", type=Path, help="LVIS v1 JSON: count its categories; JSON pools need it"
    )
    card.add_argument("--pool-image-root", type=Path, help=_POOL_ROOT_HELP)
    card.set_defaults(run=run_card)

    exporter = commands.add_parser("export-xpaste", help="write a pool's index as X-Paste reads it")
    exporter.add_argument("--pool", type=Path, required=True, help=_POOL_HELP)
    exporter.add_argument("--annotations", type=Path, required=True, help="LVIS v1 JSON")
    exporter.add_argument("--pool-image-root", type=Path, help=_POOL_ROOT_HELP)
    exporter.add_argument("--out", type=Path, required=True, help="JSON file to write")
    exporter.set_defaults(run=run_export_xpaste)
    return parser


def run_preview(options: argparse.Namespace) -> None:
    """Write a contact sheet."""
    if min(options.n_images, options.n_columns, options.tile_px) < 1:
        raise ValueError("--n-images, --n-columns and --tile-px must be positive")
    settings = _settings(options)
    lvis, paste, _ = _inputs(options, settings.paste)
    annotations = lvis.annotations_by_image()
    names = {int(category["id"]): str(category["name"]) for category in lvis.categories}
    tiles = []
    n_pasted = 0
    for image in lvis.images[: options.n_images]:
        target, _ = read_annotated_image(
            image, annotations[image["id"]], options.image_root, boxes_only=lvis.boxes_only
        )
        result = paste(target, sample_rng(settings.compose.seed, 0, int(image["id"])))
        n_pasted += result.n_pasted
        tiles.append(draw_result(result, names, tile_px=options.tile_px))
    sheet = contact_sheet(tiles, tile_px=options.tile_px, n_columns=options.n_columns)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(options.out)
    print(f"{options.out}: {len(tiles)} images, {n_pasted} pasted instances")


def run_compose(options: argparse.Namespace) -> None:
    """Write an augmented data set."""
    settings = _settings(options)
    if options.write_config:
        write_settings(options.write_config, settings)
        return
    config = settings.compose
    lvis, paste, recipe = _inputs(options, settings.paste)
    if options.dry_run:
        n_images = len(lvis.images) * config.copies_per_image
        print(
            f"{n_images} images with pastes from {len(paste.pool)} pool instances "
            f"(source {paste.source}) to {options.out}"
        )
        return
    summary = compose(
        lvis,
        options.image_root,
        paste,
        options.out,
        config=config,
        recipe=recipe,
        n_workers=options.n_workers,
        progress=_progress_printer() if sys.stderr.isatty() else None,
    )
    for message in summary.failed:
        print(f"left out: {message}", file=sys.stderr)
    if summary.corrupt_instances:
        print(f"unreadable instances: {', '.join(summary.corrupt_instances)}", file=sys.stderr)
    print(
        f"{options.out / 'annotations.json'}: {summary.n_images} images, "
        f"{summary.n_pasted} pasted instances, {summary.n_removed} real ones hidden, "
        f"{len(summary.failed)} images left out"
    )
    if not summary.n_images:
        raise ValueError(
            f"none of the {len(summary.failed)} images could be used, see above; is --image-root "
            f"{options.image_root} their folder?"
        )
    if summary.n_without_pixel:
        print(f"left out: {summary.n_without_pixel} annotations without a pixel", file=sys.stderr)
    if any(annotation.get("iscrowd") for annotation in lvis.annotations):
        print(
            "crowd regions stay, marked `iscrowd`; readers of LVIS that know no crowds take them "
            "for objects, detectron2's unless given extra_annotation_keys=['iscrowd']",
            file=sys.stderr,
        )
    if not summary.n_pasted:
        print(
            "nothing was pasted: look at --source, --count-range and the sizes of the images",
            file=sys.stderr,
        )


def run_card(options: argparse.Namespace) -> None:
    """Print a pool's card."""
    if options.annotations:
        categories = load_lvis(options.annotations).categories
        pool = open_any_pool(options.pool, categories, image_root=options.pool_image_root)
    elif options.pool.is_file():
        raise ValueError(f"{options.pool} is no folder; a JSON pool needs --annotations")
    elif (options.pool / "meta.json").exists() or not options.pool.is_dir():
        pool = InstancePool.open(options.pool)
    else:
        pool = open_folder_pool(options.pool)
    print(json.dumps(dataclasses.asdict(pool.card()), indent=1))


def run_export_xpaste(options: argparse.Namespace) -> None:
    """Write a pool's index in X-Paste's form."""
    categories = load_lvis(options.annotations).categories
    pool = open_any_pool(options.pool, categories, image_root=options.pool_image_root)
    write_xpaste_json(pool, options.out)
    print(f"{options.out}: {len(pool)} instances of {len(pool.category_ids)} categories")


def _add_input_options(
    parser: argparse.ArgumentParser,
) -> tuple[argparse.Action, argparse.Action]:
    """Add what is pasted into and from; return what cannot be left out."""
    parser.add_argument("--pool", type=Path, help=f"{_POOL_HELP}; if the source has one")
    parser.add_argument("--pool-image-root", type=Path, help=_POOL_ROOT_HELP)
    annotations = parser.add_argument(
        "--annotations", type=Path, required=True, help="LVIS v1 JSON"
    )
    images = parser.add_argument(
        "--image-root", type=Path, required=True, help="folder of its images"
    )
    parser.add_argument(
        "--statistics", type=Path,
        help="LVIS v1 JSON to measure object scales on (default: the annotations)",
    )  # fmt: skip
    parser.add_argument(
        "--on-corrupt", choices=("raise", "skip"), default="raise",
        help="stop at an unreadable instance, or leave it out (default raise)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="default",
        help="what settings are that neither file nor flag names (default: default)",
    )  # fmt: skip
    return annotations, images


PASTE_FLAGS = {
    "--source": "paste.source",
    "--count-range": "paste.count_range",
    "--scale-range": "paste.scale_range",
    "--blend-mode": "paste.blend_mode",
    "--seed": "compose.seed",
}
COMPOSE_FLAGS = {
    "--copies-per-image": "compose.copies_per_image",
    "--image-format": "compose.image_format",
    "--segmentation": "compose.segmentation",
}
"""What is changed daily; everything else is changed in the settings file."""


_POOL_HELP = "pool folder, folder of category folders of RGBA PNGs, X-Paste index or LVIS JSON"
_POOL_ROOT_HELP = "folder of the images of a JSON pool (default: the folder it is in)"


def _settings(options: argparse.Namespace) -> Settings:
    return settings_of(options, Settings(paste=PRESETS[options.preset]))


def _inputs(
    options: argparse.Namespace, recipe: PasteConfig
) -> tuple[Lvis, CopyPaste, dict[str, Any]]:
    if not options.image_root.is_dir():
        raise ValueError(f"there is no image folder {options.image_root}")
    lvis = load_lvis(options.annotations)
    if recipe.uses_pool != (options.pool is not None):
        wanted = "needs --pool" if recipe.uses_pool else "takes no --pool; see --source"
        raise ValueError(f"the source is {recipe.source}, which {wanted}")
    pool = statistics = donors = None
    if recipe.uses_pool:
        pool = open_any_pool(options.pool, lvis.categories, image_root=options.pool_image_root)
    if recipe.uses_donors:
        donors = LvisDonors(lvis, options.image_root)
    if recipe.uses_pool and recipe.scale_range is None:
        statistics = ScaleStatistics.from_annotations(options.statistics or lvis)
    record = dataclasses.asdict(recipe) | {"statistics": None}
    if options.statistics:
        record["statistics"] = hashlib.sha256(options.statistics.read_bytes()).hexdigest()
    paste = recipe.build(pool, statistics, donors=donors, on_corrupt=options.on_corrupt)
    return lvis, paste, record


def _progress_printer() -> Callable[[int, int], None]:
    start = time.monotonic()
    n_before: int | None = None

    def show(n_done: int, n_total: int) -> None:
        nonlocal n_before
        n_before = n_done - 1 if n_before is None else n_before
        rate = (n_done - n_before) / max(time.monotonic() - start, 1e-9)
        text = f"\r{n_done}/{n_total} images, {rate:.1f}/s, {(n_total - n_done) / rate:.0f} s left "
        print(text, end="\n" if n_done == n_total else "", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
