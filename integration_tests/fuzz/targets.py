"""The readers under test, and what each makes of its input."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plain
from cases import Refused, Target
from inputs import CATEGORIES

import bsgal_generate
import bsgal_generate.errors
import bsgal_mask
import bsgal_paste
import bsgal_paste.errors
import bsgal_train.errors
from bsgal_generate._funnel import pool_outcomes
from bsgal_generate._meta import check_unchanged
from bsgal_mask import cli as mask_cli
from bsgal_mask._pool_rows import read_pool_rows
from bsgal_paste import cli as paste_cli
from bsgal_paste._instance_images import cut_out
from bsgal_paste._lvis import load_lvis, read_annotated_image
from bsgal_paste._pool_sources import open_xpaste_pool
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.annotations.check import check_data

GENERATE = (
    bsgal_generate.errors.ImageSetError,
    bsgal_generate.errors.ConfigChangedError,
    bsgal_generate.errors.CategoryFileError,
    bsgal_generate.errors.PromptError,
)
MASK = (bsgal_mask.ImageSetError, bsgal_mask.PoolError, bsgal_mask.ImageError)
PASTE = (
    bsgal_paste.errors.PoolFormatError,
    bsgal_paste.errors.EmptyPoolError,
    bsgal_paste.errors.CorruptInstanceError,
    bsgal_paste.errors.AnnotationError,
    bsgal_paste.errors.NoCommonCategoryError,
    FileNotFoundError,
)
TRAIN = (bsgal_train.errors.AnnotationError, bsgal_train.errors.CorruptImageError)
_POOL = ("manifest.jsonl", "meta.json", "instances/*/*.png")
_ANNOTATED = ("lvis.json", "lvis.json", "lvis.json", "photos/*")


def all_targets(inputs: Path) -> list[Target]:
    """Return every reader; one that comes twice gets twice as many cases."""
    images, categories, pool = inputs / "images", inputs / "categories", inputs / "pool"
    annotated, xpaste = inputs / "annotated", inputs / "xpaste"
    image_files = ("manifest.jsonl", "meta.json", "images/*/*.png")
    generate_set = Target(
        "generate: image set", images, image_files, _image_set(images), plain.image_set, GENERATE
    )
    paste_pool = Target(
        "paste: pool", pool, (*_POOL, "manifest.index"), _paste_pool, plain.pool, PASTE
    )
    paste_lvis = Target(
        "paste: annotations", annotated, _ANNOTATED, _annotated, plain.annotated, PASTE
    )
    compose = Target(
        "paste: compose", annotated, _ANNOTATED, _compose(pool), _composed_says(pool), PASTE
    )
    return [
        generate_set,
        *(
            Target(
                f"generate: {name}", categories, (name,), _categories(name),
                lambda root, name=name: plain.categories(root / name), GENERATE,
            )
            for name in ("lvis.json", "list.json", "names.txt")
        ),
        Target("generate: prompts", categories, ("prompts/*.txt",), _prompts,
               lambda root: plain.prompts(root / "prompts"), GENERATE),
        Target("generate: pool", pool, _POOL[:2], pool_outcomes, plain.outcomes, GENERATE),
        Target("mask: run", images, image_files, _mask_run, _mask_says(pool), MASK),
        Target("mask: pool", pool, _POOL, _mask_pool, _pool_rows, MASK),
        Target("mask: run again", pool, _POOL, _mask_again(images), _pool_rows, MASK),
        paste_pool,
        Target("paste: X-Paste pool", xpaste, ("index.json", "*/*.png"), _xpaste, _xpaste_says,
               PASTE),
        paste_lvis,
        Target("paste: donors", annotated, _ANNOTATED, _donors, _donors_say, PASTE),
        compose,
        Target("train: annotations", annotated, _ANNOTATED[:1], _train, _train_says, TRAIN),
        Target("train: check-data", annotated, _ANNOTATED[:1], _check_data, _train_says, TRAIN),
        generate_set,
        paste_pool,
        paste_lvis,
        compose,
    ]  # fmt: skip


def _image_set(original: Path) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        image_set = bsgal_generate.ImageSet.open(root)
        check_unchanged(root, image_set.meta, json.loads((original / "meta.json").read_text()))
        bsgal_generate.funnel(image_set)
        rows = []
        for row in image_set:
            picture = None
            if row.file:
                pixels = image_set.read_image(row)
                assert pixels.shape[2] == 3
                with_alpha = plain.np.dstack([pixels, plain.np.full(pixels.shape[:2], 255, "u1")])
                picture = plain.digest(with_alpha)
            rows.append([{key: getattr(row, key) for key in plain.IMAGE_FIELDS}, picture])
        return {
            "rows": rows,
            "meta": {key: image_set.meta.get(key) for key in plain.META_KEYS},
        }

    return read


def _categories(name: str) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        found = bsgal_generate.load_categories(root / name)
        return [[c.category_id, c.name, list(c.synonyms), c.definition] for c in found]

    return read


def _prompts(root: Path) -> Any:
    known = [bsgal_generate.Category(c["id"], c["name"]) for c in CATEGORIES]
    return {
        str(key): list(lines)
        for key, lines in bsgal_generate.load_prompts(root / "prompts", known).items()
    }


def _run(main: Callable[[Sequence[str]], int], command: Sequence[str]) -> str:
    """Run a command; return what it printed to stderr, or raise that it refused."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        status = main(command)
    if status:
        raise Refused(stderr.getvalue())
    return stderr.getvalue()


def _mask_run(root: Path) -> Any:
    out = root.parent / f"{root.name}-pool"
    said = _run(mask_cli.main, ["run", str(root), "--out", str(out), "--quiet"])
    found = {row["sample_id"]: row for row in plain.pool_rows(out)}
    for row in found.values():
        if str(row["reason"]).startswith("image:"):
            raise Refused(f"{root}: {row['reason']} {said}")
    try:
        return _cut(found, out)
    finally:
        shutil.rmtree(out)


_CUT_FIELDS = ("sample_id", "category_id", "category_name", "prompt", "status", "bbox_xywh")


def _cut(rows: dict[str, Any], root: Path) -> Any:
    found = []
    for row in rows.values():
        picture = plain.pixels_of(root / row["file"], "RGBA") if row["file"] else None
        found.append([{key: row[key] for key in _CUT_FIELDS}, picture])
    return found


def _mask_says(pool: Path) -> Callable[[Path], Any]:
    """Say what the run over a legally edited image set gives: the same pictures, other words."""

    def says(root: Path) -> Any:
        by_picture = {}
        cut = {row["sample_id"]: row for row in plain.pool_rows(pool)}
        for row in plain.lines_of(pool.parent / "images" / "manifest.jsonl"):
            by_picture[row["sha256"]] = cut[row["sample_id"]]
        found = []
        for row in plain.last_of_each(plain.lines_of(root / "manifest.jsonl"), "sample_id"):
            own = {key: row[key] for key in _CUT_FIELDS[:4]}
            if row["status"] != "ok":
                found.append([own | {"status": "dropped", "bbox_xywh": None}, None])
                continue
            before = by_picture[row["sha256"]]
            picture = plain.pixels_of(pool / before["file"], "RGBA")
            found.append([{key: before[key] for key in _CUT_FIELDS} | own, picture])
        return found

    return says


_POOL_FIELDS = (
    "instance_id", "category_id", "category_name", "sample_id", "prompt", "file",
    "label_mask_threshold", "method", "scores", "agreement", "clip_score", "clip_similarity",
    "area_frac", "bbox_xywh", "status", "reason", "sha256",
)  # fmt: skip


def _mask_pool(root: Path) -> Any:
    report = bsgal_mask.verify_pool(root)
    if report.damaged:
        raise Refused(f"{root}: {dict(report.damaged)}")
    bsgal_mask.summarise_pool(root)
    return [{key: row[key] for key in _POOL_FIELDS} for row in read_pool_rows(root).values()]


def _pool_rows(root: Path) -> Any:
    return [{key: row.get(key) for key in _POOL_FIELDS} for row in plain.pool_rows(root)]


def _mask_again(images: Path) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        _run(mask_cli.main, ["run", str(images), "--out", str(root), "--quiet"])
        report = bsgal_mask.verify_pool(root)
        assert not report.damaged, report.damaged
        rows = {row["instance_id"]: row for row in _pool_rows(root)}
        return [rows[key] for key in sorted(rows)]

    return read


def _paste_pool(root: Path) -> Any:
    return _instances(bsgal_paste.InstancePool.open(root))


def _instances(pool: bsgal_paste.InstancePool) -> Any:
    names = pool.category_names
    found = []
    for position in range(len(pool)):
        one = pool.read(position)
        found.append(
            [one.instance_id, one.category_id, names[one.category_id], one.label_mask_threshold,
             plain.digest(one.rgba)]
        )  # fmt: skip
    return found


def _xpaste(root: Path) -> Any:
    return _instances(open_xpaste_pool(root / "index.json", _XPASTE_CATEGORIES))


_XPASTE_CATEGORIES = [{"id": 1, "name": "apple"}, {"id": 3, "name": "bus"}]


def _xpaste_says(root: Path) -> Any:
    names = {category["id"]: category["name"] for category in _XPASTE_CATEGORIES}
    found = {}
    for key, entries in json.loads((root / "index.json").read_text()).items():
        for entry in entries:
            image, _, mask = entry.removeprefix("*").partition("|")
            if mask:
                with plain.Image.open(root / image) as one, plain.Image.open(root / mask) as two:
                    rgb, alpha = one.convert("RGB"), two.convert("L")
                picture = plain.digest(cut_out(plain.np.asarray(rgb), plain.np.asarray(alpha)))
            else:
                picture = plain.pixels_of(root / image, "RGBA")
            number = int(key) + 1
            name = f"{number}/{entry.removeprefix('*')}"
            found[number, name] = [name, number, names[number], 128, picture]
    return [found[key] for key in sorted(found)]


def _annotated(root: Path) -> Any:
    lvis = load_lvis(root / "lvis.json")
    names = {category["id"]: category["name"] for category in lvis.categories}
    bsgal_paste.ScaleStatistics.from_annotations(lvis)
    assert not lvis.boxes_only
    grouped = lvis.annotations_by_image()
    found = []
    for image in lvis.images:
        one, _ = read_annotated_image(image, grouped[image["id"]], root / "photos")
        pairs = zip(one.category_ids.tolist(), one.masks, strict=True)
        entries = [[names[number], number, plain.digest(mask)] for number, mask in pairs]
        found.append([image["id"], plain.digest(one.image), entries])
    return found


def _donors(root: Path) -> Any:
    donors = bsgal_paste.LvisDonors(root / "lvis.json", root / "photos")
    found = []
    for index in range(len(donors._entries)):
        one = donors.read(index)
        entries = [[n, plain.digest(m)] for n, m in zip(one.instance_ids, one.masks, strict=True)]
        found.append([plain.digest(one.image), entries])
    return found


def _donors_say(root: Path) -> Any:
    document = json.loads((root / "lvis.json").read_text())
    found = []
    for image in document["images"]:
        own = [
            a for a in document["annotations"]
            if a["image_id"] == image["id"] and a.get("segmentation") and not a.get("iscrowd")
        ]  # fmt: skip
        masks = [plain.mask_of(a["segmentation"], image["height"], image["width"]) for a in own]
        entries = [
            [f"annotation-{a['id']}", plain.digest(mask)]
            for a, mask in zip(own, masks, strict=True)
            if mask.any()
        ]
        name = image.get("file_name") or image["coco_url"].split("/")[-1]
        if own:
            found.append([plain.pixels_of(root / "photos" / name, "RGB"), entries])
    return found


def _compose(pool: Path) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        said, composed = _composed(root, pool)
        if "left out" in said or "unreadable" in said:
            raise Refused(said)
        return composed

    return read


def _composed(root: Path, pool: Path) -> tuple[str, Any]:
    """Paste into the photographs, and return what the real objects and categories became."""
    out = root.parent / f"{root.name}-out"
    command = ["compose", "--annotations", str(root / "lvis.json"), "--pool", str(pool)]
    command += ["--image-root", str(root / "photos"), "--out", str(out), "--image-format", "png"]
    command += ["--count-range", "1", "3", "--scale-range", "0.1", "0.2"]
    try:
        said = _run(paste_cli.main, command)
        document = json.loads((out / "annotations.json").read_text())
    finally:
        if out.exists():
            shutil.rmtree(out)
    real = [a for a in document["annotations"] if not a.get("instance_id")]
    return said, {
        "categories": [[c["id"], c["name"]] for c in document["categories"]],
        "images": [[i["width"], i["height"]] for i in document["images"]],
        "real": sorted(a["category_id"] for a in real),
        "pasted": len(document["annotations"]) > len(real),
    }


def _composed_says(pool: Path) -> Callable[[Path], Any]:
    def says(root: Path) -> Any:
        document = json.loads((root / "lvis.json").read_text())
        # What a paste hides is for the paste to say; that it invents nothing can be said here.
        composed = _composed(root, pool)[1]
        mine = [number for _, _, own in plain.annotated(root) for _, number, _ in own]
        left = list(mine)
        for number in composed["real"]:
            left.remove(number)
        return {
            "categories": [[c["id"], c["name"]] for c in document["categories"]],
            "images": [[i["width"], i["height"]] for i in document["images"]],
            "real": composed["real"],
            "pasted": composed["pasted"],
        }

    return says


def _train(root: Path) -> Any:
    data = LvisAnnotations.load(root / "lvis.json", root / "photos")
    ids = [category.category_id for category in data.categories]
    return {
        "categories": [[c.category_id, c.name, c.instance_count] for c in data.categories],
        "images": [
            [
                record.image_id, record.height, record.width, record.path.name,
                [[one.annotation_id, ids[one.class_index], list(one.bbox_xywh), one.segmentation]
                 for one in record.instances],
            ]
            for record in data.images
        ],
    }  # fmt: skip


def _train_says(root: Path) -> Any:
    document = json.loads((root / "lvis.json").read_text())
    annotations = document["annotations"]
    return {
        "categories": [
            [c["id"], c["name"], sum(a["category_id"] == c["id"] for a in annotations)]
            for c in sorted(document["categories"], key=lambda c: c["id"])
        ],
        "images": [
            [
                i["id"], i["height"], i["width"],
                i.get("file_name") or i["coco_url"].split("/")[-1],
                [[a["id"], a["category_id"], list(map(float, a["bbox"])), a["segmentation"]]
                 for a in annotations if a["image_id"] == i["id"]],
            ]
            for i in document["images"]
        ],
    }  # fmt: skip


def _check_data(root: Path) -> Any:
    report = check_data(root / "lvis.json", root / "photos")
    if not report.is_usable:
        raise Refused(str(report))
    return _train(root)
