"""Reading an image set: a folder of generated images with one manifest row per image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bsgal_mask._fields import Fields
from bsgal_mask._files import read_inside
from bsgal_mask._images import decode_image
from bsgal_mask._jsonl import read_rows
from bsgal_mask._meta import MANIFEST_NAME, META_NAME, parse_meta
from bsgal_mask._segmenter import Image
from bsgal_mask.errors import ImageError, ImageSetError

SCHEMA = "bsgal.image_set/1"
_STATUSES = ("ok", "flagged", "blank", "nonfinite", "failed")


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
    height: int | None = None
    """In pixels; None where the manifest does not say."""
    width: int | None = None


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
        meta_path, manifest_path = root / META_NAME, root / MANIFEST_NAME
        rows: dict[str, ImageRow] = {}
        try:
            meta = meta_path.read_bytes()
            parse_meta(meta_path, meta, SCHEMA)
            for number, row in read_rows(manifest_path):
                parsed = _parse(Fields(row, f"{manifest_path}, line {number}"))
                rows[parsed.sample_id] = parsed
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageSetError(
                f"{root} is not an image set: it has no {Path(error.filename).name}; "
                "name a folder that `bsgal-generate run` wrote"
            ) from None
        except OSError as error:
            raise ImageSetError(f"cannot read {error.filename} ({error.strerror})") from None
        except ValueError as error:
            raise ImageSetError(str(error)) from None
        _check_names(manifest_path, rows.values())
        return cls(root, hashlib.sha256(meta).hexdigest(), tuple(rows.values()))

    def read(self, row: ImageRow, *, max_image_px: int) -> Image:
        """Return a row's image, uint8 RGB (H, W, 3) or RGBA (H, W, 4), checked against the row.

        Raises:
            ImageError: The image cannot be used; the message says why.
        """
        if row.file is None:
            raise ImageError("the row names no file")
        content = read_inside(self.root, row.file)
        if row.sha256 is not None and hashlib.sha256(content).hexdigest() != row.sha256:
            raise ImageError("the file is not the one the manifest names (its SHA-256 differs)")
        image = decode_image(content, max_image_px=max_image_px, keep_alpha=True)
        for found, expected, side in zip(
            image.shape, (row.height, row.width), ("height", "width"), strict=False
        ):
            if expected not in (None, found):
                raise ImageError(f"{side} {found} px, the manifest says {expected} px")
        return image


def _parse(fields: Fields) -> ImageRow:
    row = ImageRow(
        sample_id=fields.file_name("sample_id"),
        category_id=fields.integer("category_id"),
        category_name=fields.name("category_name"),
        prompt=fields.text("prompt"),
        file=None if fields.is_null("file") else fields.file("file"),
        sha256=None if fields.is_null("sha256") else fields.sha256("sha256"),
        status=fields.one_of("status", _STATUSES),
        reason=fields.optional_text("reason"),
        height=None if fields.is_null("height") else fields.integer("height", 1),
        width=None if fields.is_null("width") else fields.integer("width", 1),
    )
    if _is_scene(fields, row):
        raise ValueError(
            f"{fields.where}: this is a scene, which shows no object to cut out; give an image "
            "set of objects"
        )
    return row


def _check_names(manifest_path: Path, rows: Iterable[ImageRow]) -> None:
    names: dict[int, str] = {}
    for row in rows:
        name = names.setdefault(row.category_id, row.category_name)
        if name != row.category_name:
            raise ImageSetError(
                f"{manifest_path}: category {row.category_id} is {name!r}, but "
                f"{row.category_name!r} in sample {row.sample_id}; one id must have one name"
            )


def _is_scene(fields: Fields, row: ImageRow) -> bool:
    """Tell whether an image is a background; sets of 0.1 mark these by category id and name."""
    if fields.is_null("kind"):
        return (row.category_id, row.category_name) == (0, "scene")
    return fields.one_of("kind", ("object", "scene")) == "scene"
