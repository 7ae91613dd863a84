"""Reading an image set: a folder of generated images with one manifest row per image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bsgal_mask._files import is_path_safe, sha256_of, stays_inside
from bsgal_mask._images import read_image
from bsgal_mask._jsonl import Row, read_rows
from bsgal_mask._segmenter import Image
from bsgal_mask.errors import ImageError, ImageSetError

SCENE_CATEGORY_ID = 0
SCHEMA = "bsgal.image_set/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One image of the set, as far as this package needs to know it."""

    sample_id: str
    category_id: int
    category_name: str
    prompt: str
    file: str | None
    """Path relative to the set's folder; None when no image was stored."""
    sha256: str | None
    status: str
    """`ok`, or why the image must not be used."""
    reason: str | None


class ImageSet:
    """The rows of an image set, and its images one at a time."""

    def __init__(self, root: Path, meta_sha256: str, rows: tuple[ImageRow, ...]) -> None:
        self.root = root
        self.meta_sha256 = meta_sha256
        self.rows = rows

    @classmethod
    def open(cls, root: str | Path) -> ImageSet:
        """Read and check an image set's manifest.

        Where rows share a `sample_id`, the last one counts. A torn last line is left out.

        Raises:
            ImageSetError: A file is missing or malformed, the schema is another one, or a path
                leads out of the folder.
        """
        root = Path(root)
        meta_path, manifest_path = root / "meta.json", root / "manifest.jsonl"
        for path in (meta_path, manifest_path):
            if not path.is_file():
                raise ImageSetError(
                    f"{root} is not an image set: it has no {path.name}; "
                    "name a folder that `bsgal-generate run` wrote"
                )
        try:
            meta = json.loads(meta_path.read_bytes())
        except ValueError as error:
            raise ImageSetError(f"{meta_path} is not JSON ({error})") from None
        schema = meta.get("schema") if isinstance(meta, dict) else None
        if schema != SCHEMA:
            raise ImageSetError(f"{meta_path}: schema must be {SCHEMA!r}, got {schema!r}")
        rows: dict[str, ImageRow] = {}
        try:
            for number, fields in read_rows(manifest_path):
                row = _parse(fields, f"{manifest_path}, line {number}")
                rows[row.sample_id] = row
        except ValueError as error:
            raise ImageSetError(str(error)) from None
        return cls(root, sha256_of(meta_path), tuple(rows.values()))

    def read(self, row: ImageRow, *, max_image_px: int) -> Image:
        """Return a row's image, uint8 RGB (H, W, 3), checked against the row's SHA-256.

        Raises:
            ImageError: The image cannot be used; the message says why.
        """
        if row.file is None:
            raise ImageError("the row names no file")
        path = self.root / row.file
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ImageError("a symbolic link leads out of the image set's folder")
        return read_image(path, max_image_px=max_image_px, sha256=row.sha256)


def _parse(fields: Row, where: str) -> ImageRow:
    def text(key: str) -> str:
        value = optional_text(key)
        if value is None:
            raise ValueError(f"{where}: {key!r} must be text, got null or nothing")
        return value

    def optional_text(key: str) -> str | None:
        value = fields.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: {key!r} must be text, got {value!r}")
        return value

    category_id = fields.get("category_id")
    if not isinstance(category_id, int) or isinstance(category_id, bool) or category_id < 0:
        raise ValueError(f"{where}: 'category_id' must be a whole number, got {category_id!r}")
    if category_id == SCENE_CATEGORY_ID:
        raise ValueError(
            f"{where}: this is a scene (category id 0), which shows no object to cut out; give an "
            "image set of objects"
        )
    row = ImageRow(
        sample_id=text("sample_id"),
        category_id=category_id,
        category_name=text("category_name"),
        prompt=text("prompt"),
        file=optional_text("file"),
        sha256=optional_text("sha256"),
        status=text("status"),
        reason=optional_text("reason"),
    )
    if not is_path_safe(row.sample_id):
        raise ValueError(f"{where}: 'sample_id' {row.sample_id!r} cannot be used as a file name")
    if row.file is not None and not stays_inside(row.file):
        raise ValueError(
            f"{where}: 'file' {row.file!r} is not a plain path inside the image set's folder"
        )
    return row
