"""Instance pools that `bsgal-mask` did not write, and the way back to X-Paste's form."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bsgal_paste._instance_images import AnnotatedObjects, FileImages
from bsgal_paste._lvis import load_lvis
from bsgal_paste._manifest import parse_json, write_atomically
from bsgal_paste._names import CategoryLike, category_names
from bsgal_paste._paths import as_path
from bsgal_paste._pool import DEFAULT_MAX_IMAGE_PIXELS, InstancePool
from bsgal_paste._pool_index import PoolIndex, PoolRow, safe_relative_path
from bsgal_paste.errors import EmptyPoolError, PoolFormatError

_CLASS_INDEX = re.compile("[0-9]{1,18}")


def open_folder_pool(
    path: str | Path, *, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> InstancePool:
    """Open a folder of RGBA PNGs, one folder per category, called by the category's name.

    Instances are called `<category>/<file name>`; categories are numbered from 1 by name, for
    `InstancePool.match` to change.

    Args:
        path: The folder.
        max_image_pixels: An image with more pixels than this is refused unread.

    Raises:
        FileNotFoundError: There is no such folder.
        EmptyPoolError: No folder in it holds a PNG.
    """
    root = as_path(path, "path")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    names = sorted(entry.name for entry in root.iterdir() if any(entry.glob("*.png")))
    rows = [
        PoolRow(category_id, f"{name}/{file.stem}", file=f"{name}/{file.name}")
        for category_id, name in enumerate(names, start=1)
        for file in sorted((root / name).glob("*.png"))
    ]
    if not rows:
        raise EmptyPoolError(
            f"{root} has no folder with PNG files; there must be one folder per category, "
            "called by its name"
        )
    index = PoolIndex.of(rows, dict(enumerate(names, start=1)))
    images = FileImages(root, index, max_image_pixels, ".")
    return InstancePool(index, images, {"source": {"folder": str(root)}})


def open_xpaste_pool(
    path: str | Path,
    categories: Iterable[CategoryLike | Mapping[str, Any]],
    *,
    image_root: str | Path | None = None,
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> InstancePool:
    """Open the JSON index of an X-Paste pool.

    It maps class indices, from 0, to lists of files: `*file` is an RGBA cut-out, `image|mask` a
    picture and its mask, of which the largest part above 128 counts. Class index i stands for the
    category of id i + 1, so the pool needs no matching.

    Args:
        path: The JSON file.
        categories: The `categories` of the annotation file, for names and to check the ids.
        image_root: Folder that the files are in, and that relative names start from; the JSON
            file's own if not given.
        max_image_pixels: An image with more pixels than this is refused unread.

    Raises:
        PoolFormatError: The file is no such index, names a category that `categories` lack, or a
            file outside of `image_root`.
        EmptyPoolError: It lists no instance.
    """
    source = as_path(path, "path")
    root = source.parent if image_root is None else as_path(image_root, "image_root")
    root = Path(os.path.realpath(root))
    content = _read_json_file(source)
    try:
        listed = parse_json(content)
    except ValueError as error:
        raise PoolFormatError(f"{source}: {error}") from None
    if not isinstance(listed, dict):
        raise PoolFormatError(f"{source} must map class indices to lists of files")
    known = {category.category_id: category.name for category in category_names(categories)}
    rows: dict[str, PoolRow] = {}
    names: dict[int, str] = {}
    for key, files in listed.items():
        if not _CLASS_INDEX.fullmatch(key) or not isinstance(files, list):
            raise PoolFormatError(f"{source}, key {key!r}: must be a class index with a list")
        category_id = int(key) + 1
        if files and category_id not in known:
            raise PoolFormatError(
                f"{source}, key {key!r}: there is no category {category_id} in the annotations"
            )
        for entry in files:
            where = f"{source}, class {key}"
            is_one = isinstance(entry, str) and entry.startswith("*")
            if not isinstance(entry, str) or entry.count("|") != (0 if is_one else 1):
                raise PoolFormatError(f"{where}: {entry!r} is neither '*file' nor 'image|mask'")
            parts = [_inside(part, root, where) for part in entry.removeprefix("*").split("|")]
            files_of_entry = "|".join(parts)
            instance_id = f"{category_id}/{files_of_entry}"
            rows[instance_id] = PoolRow(category_id, instance_id, file=files_of_entry)
            names[category_id] = known[category_id]
    if not rows:
        raise EmptyPoolError(f"{source} lists no instance")
    digest = hashlib.sha256(content).hexdigest()
    index = PoolIndex.of(rows.values(), names, manifest_sha256=digest)
    images = FileImages(root, index, max_image_pixels, str(source.resolve()))
    return InstancePool(index, images, {"source": {"xpaste": str(source), "sha256": digest}})


def open_any_pool(
    path: str | Path,
    categories: Iterable[CategoryLike | Mapping[str, Any]],
    *,
    image_root: str | Path | None = None,
) -> InstancePool:
    """Open whatever pool `path` is, with the category ids of an annotation file.

    A folder with `meta.json` is a pool of `bsgal-mask`, another folder is taken for one of
    category folders; a JSON file is an LVIS file if it has the keys of one, else X-Paste's index.

    Args:
        path: The folder or file.
        categories: The `categories` of the annotation file.
        image_root: Folder of the images, for a JSON file; its own if not given.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: As the readers of each form raise, and if no category matches.
    """
    source, wanted = as_path(path, "path"), category_names(categories)
    if source.is_dir():
        if image_root is not None:
            raise ValueError(f"{source} is a folder, which takes no image root")
        is_pool = any((source / name).exists() for name in ("meta.json", "manifest.jsonl"))
        return (InstancePool.open(source) if is_pool else open_folder_pool(source)).match(wanted)
    try:
        content = parse_json(_read_json_file(source))
    except ValueError as error:
        raise PoolFormatError(f"{source}: {error}") from None
    if isinstance(content, dict) and "annotations" in content:
        return lvis_pool(content, image_root or source.parent).match(wanted)
    return open_xpaste_pool(source, wanted, image_root=image_root)


def write_xpaste_json(pool: InstancePool, path: str | Path) -> None:
    """Write a pool's index in the form that X-Paste reads, with absolute paths.

    The pool's category ids become class indices one lower, so match it to the annotations first.

    Raises:
        ValueError: The instances have no files, because the pool is in memory or made of an
            annotation file; or a category has the id 0, for which there is no class index.
    """
    listed: dict[str, list[str]] = {}
    for category_id in pool.category_ids.tolist():
        if category_id < 1:
            raise ValueError(f"X-Paste has no class index for category {category_id}; ids from 1")
        entries = []
        for position in pool.positions_of(category_id):
            file = pool.file(position)
            if file is None:
                raise ValueError(
                    f"instance {pool.instance_id(position)!r} has no file; only pools of image "
                    "files can be written as an X-Paste index"
                )
            absolute = "|".join(str(Path(part).resolve()) for part in file.split("|"))
            entries.append(absolute if "|" in absolute else f"*{absolute}")
        listed[str(category_id - 1)] = entries
    write_atomically(as_path(path, "path"), json.dumps(listed, indent=0).encode())


def lvis_pool(
    lvis: Mapping[str, Any] | str | Path, image_root: str | Path, *, min_area_px: int = 100
) -> InstancePool:
    """Make a pool of the objects annotated in an LVIS v1 file, cut out when they are drawn.

    Instances are called `annotation-<id>` and have the file's category ids. Crowd regions and
    annotations without a mask are left out. The annotations stay in memory, and each reading
    decodes a whole photograph: for large files cut the objects out beforehand.

    Args:
        lvis: The parsed JSON or its path.
        image_root: Folder of the images.
        min_area_px: Annotations with a smaller `area` (of the mask, or else of the box) are left
            out.

    Raises:
        AnnotationError: The file is no LVIS JSON.
        EmptyPoolError: No annotation is left.
    """
    root = as_path(image_root, "image_root")
    content = load_lvis(lvis)
    images = {image["id"]: image for image in content.images}
    usable = [
        annotation
        for annotation in content.annotations
        if annotation.get("segmentation")
        and not annotation.get("iscrowd")
        and _area_px(annotation) >= min_area_px
    ]
    if not usable:
        raise EmptyPoolError(
            f"no annotation has a mask of at least {min_area_px} px (`min_area_px`)"
        )
    rows = [
        PoolRow(int(annotation["category_id"]), f"annotation-{annotation['id']}", line=i)
        for i, annotation in enumerate(usable)
    ]
    names = {int(category["id"]): str(category["name"]) for category in content.categories}
    digest = hashlib.sha256(json.dumps(content.raw, sort_keys=True).encode()).hexdigest()
    index = PoolIndex.of(rows, names, manifest_sha256=digest)
    # The index is sorted and says, in place of manifest lines, where each row came from.
    entries = [(images[usable[i]["image_id"]], usable[i]) for i in index.lines.tolist()]
    objects = AnnotatedObjects(entries, index, root)
    return InstancePool(index, objects, {"source": {"annotations_sha256": digest}})


def _area_px(annotation: Mapping[str, Any]) -> float:
    box = annotation["bbox"]
    return float(annotation.get("area", box[2] * box[3]))


def _read_json_file(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no pool {path}")
    return path.read_bytes()


def _inside(file: str, root: Path, where: str) -> str:
    path = Path(file)
    if path.is_absolute():
        if not path.is_relative_to(root):
            raise PoolFormatError(
                f"{where}: {file!r} is outside of {root}; give the folder that holds the files as "
                "`image_root`"
            )
        path = path.relative_to(root)
    return safe_relative_path(path.as_posix(), where)
