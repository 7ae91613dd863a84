"""Reading an instance pool: its rows, and whether the files they name are whole."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from bsgal_mask._fields import Fields
from bsgal_mask._files import read_inside
from bsgal_mask._jsonl import Row, read_rows
from bsgal_mask._meta import MANIFEST_NAME, META_NAME, parse_meta
from bsgal_mask.errors import ImageError, PoolError

SCHEMA = "bsgal.instance_pool/1"

_NULLABLE = (
    "file", "method", "agreement", "clip_score", "clip_similarity", "area_frac", "bbox_xywh",
    "reason", "sha256",
)  # fmt: skip
# Fields that rows of 0.1.0 lack.
_ADDED = ("clip_similarity",)
# Room for the rounding of a product of unit vectors.
_COSINE = 1.001
# A PNG's signature, and the length and name of its first chunk; width, height, 8 bits, RGBA follow.
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def read_pool_meta(root: Path) -> Row:
    """Return a pool's `meta.json`.

    Raises:
        PoolError: The folder is not a pool of this schema.
    """
    path = root / META_NAME
    try:
        return parse_meta(path, path.read_bytes(), SCHEMA)
    except FileNotFoundError:
        raise PoolError(f"{root} is not an instance pool: it has no {META_NAME}") from None
    except OSError as error:
        raise PoolError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise PoolError(str(error)) from None


def read_pool_rows(root: Path) -> dict[str, Row]:
    """Return a pool's rows by `instance_id`; of rows with the same id the last one counts.

    Fields that may be null and are missing, as in pools of earlier versions, are null.

    Raises:
        PoolError: The folder is not a pool of this schema, or its manifest is malformed.
    """
    config = read_pool_meta(root).get("config")
    threshold = config.get("label_mask_threshold") if isinstance(config, dict) else None
    path = root / MANIFEST_NAME
    rows: dict[str, Row] = {}
    try:
        for number, row in read_rows(path):
            fields = Fields(row, f"{path}, line {number}")
            _check_row(fields)
            if threshold is not None and row["label_mask_threshold"] != threshold:
                raise fields.refused("label_mask_threshold", f"{threshold!r}, as in {META_NAME}")
            rows[row["instance_id"]] = row | {key: row.get(key) for key in _NULLABLE}
    except FileNotFoundError:
        raise PoolError(f"{root} is not an instance pool: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise PoolError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise PoolError(str(error)) from None
    return rows


def _check_row(fields: Fields) -> None:
    """Raise `ValueError` unless a row is as `docs/explanation/formats.md` describes it."""
    missing = [key for key in _NULLABLE if key not in fields.row and key not in _ADDED]
    if missing:
        raise fields.refused(missing[0], "there, null where it has no value")
    instance_id = fields.file_name("instance_id")
    if fields.text("sample_id") != instance_id:
        raise fields.refused("sample_id", f"{instance_id!r}, as `instance_id` is")
    fields.integer("category_id")
    fields.name("category_name")
    fields.text("prompt")
    fields.integer("label_mask_threshold", 1, 255)
    scores = fields.numbers_by_name("scores", 0, 1)
    if not fields.is_null("method") and fields.text("method") not in scores:
        raise fields.refused("method", "null or one of those with `scores`")
    for key, least, most in (
        ("agreement", 0, 1),
        ("area_frac", 0, 1),
        ("clip_score", -_COSINE, _COSINE),
        ("clip_similarity", -_COSINE, _COSINE),
    ):
        if not fields.is_null(key):
            fields.number(key, least, most)
    is_kept = fields.one_of("status", ("kept", "dropped")) == "kept"
    if is_kept:
        fields.number("area_frac", 0, 1)
        if fields.text("file") != file_of(fields.row):
            raise fields.refused("file", f"{file_of(fields.row)!r}, after its ids")
    has_file = is_kept or not fields.is_null("sha256")
    if has_file:
        fields.sha256("sha256")
    if has_file or not fields.is_null("bbox_xywh"):
        fields.box_xywh("bbox_xywh")
    if is_kept != fields.is_null("reason"):
        raise fields.refused("reason", "null in a kept row and text in a dropped one")
    if not is_kept:
        fields.name("reason")
        if not fields.is_null("file"):
            raise fields.refused("file", "null in a dropped row")


def file_of(row: Row) -> str:
    """Return where an instance's file lies, relative to the pool's folder."""
    return f"instances/{row['category_id']}/{row['instance_id']}.png"


def damage_of(root: Path, row: Row) -> str | None:
    """Return what is wrong with an instance's file, compared with its row; None if it is whole.

    Args:
        root: The pool's folder.
        row: The row of a kept instance, or of one that may be kept after all.
    """
    try:
        content = read_inside(root, file_of(row))
    except ImageError as error:
        return str(error)
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        return "the file is not the one the manifest names (its SHA-256 differs)"
    width, height = row["bbox_xywh"][2:]
    if not content.startswith(_PNG_START + struct.pack(">IIBB", width, height, 8, 6)):
        return f"the file is not an RGBA PNG of {width} x {height} pixels"
    return None
