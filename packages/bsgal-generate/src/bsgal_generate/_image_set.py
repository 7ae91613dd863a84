"""The image set on disk: `meta.json`, an append-only `manifest.jsonl`, and PNG files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from sys import intern
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ._categories import SCENE, Kind
from ._images import read_png
from ._jsonl import JsonlAppender, read_jsonl, write_atomically
from ._meta import META_NAME, check_unchanged, read_meta, with_schema, write_meta
from ._schema import (
    COUNT,
    FILE_NAME,
    ID,
    INSIDE,
    NAME,
    NUMBER,
    SHA256,
    TEXT,
    Schema,
    check_object,
    one_of,
    optional,
)
from .errors import ImageSetError

MANIFEST_NAME = "manifest.jsonl"
MAX_IMAGE_PX = 1 << 26

Status = Literal["ok", "flagged", "blank", "nonfinite", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One line of the manifest: one attempt at one sample.

    Attributes:
        sample_id: Unique in the set; of several rows with the same id the last one counts.
        category_id: The category's id, 0 or more.
        category_name: The category's name as the data set spells it.
        kind: What the image shows: an object of the category, or a scene without one.
        prompt_id: Which template or prompt line was used.
        prompt: The text given to the pipeline.
        negative_prompt: The text to steer away from, or None.
        seed: Seed of this image's own generator.
        attempt: 0 for the first draw, 1 for the first redraw and so on.
        model: The pipeline's id.
        scheduler: Class name of the scheduler.
        num_inference_steps: Denoising steps.
        guidance_scale: Strength of the prompt; None where the pipeline has no such setting.
        height: Height in pixels.
        width: Width in pixels.
        file: Path relative to the set's root, with forward slashes; None if no image was kept.
        sha256: Hash of the file's bytes; None if there is no file.
        status: `ok`, or why there is no image: `flagged` by the pipeline's own safety checker,
            `blank`, `nonfinite`, or `failed`.
        reason: One sentence for people; None if there is nothing to say.
    """

    sample_id: str
    category_id: int
    category_name: str
    kind: Kind = "object"
    prompt_id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    attempt: int = 0
    model: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float | None
    height: int
    width: int
    file: str | None
    sha256: str | None
    status: Status
    reason: str | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> ImageRow:
        """Build a row from a manifest line; keys this version does not know are left out.

        Raises:
            ImageSetError: A field is missing or holds what it must not.
        """
        check_object(value, _SCHEMA, where, ImageSetError, may_lack=_MAY_LACK)
        row = cls(**{name: _shared(value[name]) for name in _SCHEMA if name in value})
        lacks_file = row.status == "ok" and row.file is None
        if lacks_file or (row.file is not None and row.sha256 is None):
            raise ImageSetError(
                f"{where}: a row whose `status` is 'ok' must have a `file`, and a row with a "
                "`file` must have its `sha256`"
            )
        if "kind" not in value and (row.category_id, row.category_name) == (0, SCENE.name):
            # This is how version 0.1, which had no other category 0, marked scenes.
            return replace(row, kind=SCENE.kind)
        return row


_SCHEMA: Schema = {
    "sample_id": FILE_NAME,
    "category_id": ID,
    "category_name": NAME,
    "kind": one_of(*get_args(Kind)),
    "prompt_id": NAME,
    "prompt": TEXT,
    "negative_prompt": optional(TEXT),
    "seed": ID,
    "attempt": ID,
    "model": TEXT,
    "scheduler": TEXT,
    "num_inference_steps": COUNT,
    "guidance_scale": optional(NUMBER),
    "height": COUNT,
    "width": COUNT,
    "file": optional(INSIDE),
    "sha256": optional(SHA256),
    "status": one_of(*get_args(Status)),
    "reason": optional(TEXT),
}
_MAY_LACK = frozenset({"kind", "attempt"})


def _shared(value: Any) -> Any:
    # A million rows repeat a few thousand prompts; keep one copy of each.
    return intern(value) if type(value) is str else value


class ImageSet:
    """A finished or half-finished image set, opened for reading.

    Attributes:
        root: The folder.
        meta: Content of `meta.json`.
        rows: The row that counts of every sample, in the order in which samples first appear.
    """

    def __init__(self, root: Path, meta: dict[str, Any], attempts: list[ImageRow]) -> None:
        self.root = root
        self.meta = meta
        self.attempts = attempts
        self.rows: tuple[ImageRow, ...] = tuple({row.sample_id: row for row in attempts}.values())

    @classmethod
    def open(cls, path: str | Path) -> ImageSet:
        """Read `meta.json` and the manifest; images are read one by one on request.

        Args:
            path: The set's folder.

        Raises:
            ImageSetError: The folder is no image set, has another schema, or its meta file or
                manifest is missing or damaged.
        """
        root = Path(path)
        meta = read_meta(root)
        if meta is None:
            raise ImageSetError(f"{root} is not an image set: it has no {META_NAME}")
        manifest = root / MANIFEST_NAME
        attempts = []
        names: dict[int, str] = {}
        for number, value in read_jsonl(manifest):
            row = ImageRow.from_json(value, f"{manifest}, line {number}")
            name = names.setdefault(row.category_id, row.category_name)
            if name != row.category_name:
                raise ImageSetError(
                    f"{manifest}, line {number}: `category_name` of category {row.category_id} "
                    f"must be {name!r} as in an earlier line, got {row.category_name!r}"
                )
            attempts.append(row)
        return cls(root, meta, attempts)

    def settled(self, max_redraws: int) -> set[str]:
        """Return the ids of the samples that have an image or have used up their redraws."""
        return {r.sample_id for r in self.rows if r.status == "ok" or r.attempt >= max_redraws}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ImageRow]:
        return iter(self.rows)

    def read_image(
        self, row: ImageRow, *, max_image_px: int = MAX_IMAGE_PX
    ) -> npt.NDArray[np.uint8]:
        """Return a row's image, uint8 of shape (H, W, 3) in RGB, or (H, W, 4) if it has alpha.

        Args:
            row: The row.
            max_image_px: Most pixels the image may have; a larger one is not decoded.

        Raises:
            ImageSetError: The row has no image, or its file is missing, damaged, too large, of
                another size than the row says, or a link out of the set's folder.
        """
        if row.file is None:
            raise ImageSetError(f"sample {row.sample_id} has no image: it is {row.status}")
        path = self.root / row.file
        where = f"sample {row.sample_id}: {path}"
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ImageSetError(f"{where} is a link out of the set's folder")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageSetError(f"sample {row.sample_id}: cannot read {path}: {error}") from error
        if hashlib.sha256(content).hexdigest() != row.sha256:
            raise ImageSetError(
                f"{where} is damaged (its hash is not the manifest's); run the generation again to "
                "redraw it"
            )
        image = read_png(content, where, max_image_px)
        if image.shape[:2] != (row.height, row.width):
            raise ImageSetError(
                f"{where} has {image.shape[1]} x {image.shape[0]} pixels, and the manifest says "
                f"{row.width} x {row.height}"
            )
        return image

    def has_file(self, row: ImageRow) -> bool:
        """Return whether a row's file is there and has the bytes that were recorded."""
        if row.file is None:
            return False
        try:
            content = (self.root / row.file).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == row.sha256


class ImageSetWriter:
    """Adds images to a set; every image is on the disk before the row that names it.

    Use it as a context manager. Opening a folder that already holds a set continues it.

    Args:
        root: The set's folder; made if it is missing.
        meta: `config`, `model` and `versions` as they go into `meta.json`. `config`
            and the model's weight hash must agree with those of a set that is continued; only the
            number of images may be larger.

    Attributes:
        root: The set's folder.
        meta: The content of `meta.json`; it does not change when a set is continued.

    Raises:
        ConfigChangedError: The folder holds a set with another config or model.
        ImageSetError: The folder cannot be written, holds something of another schema, or another
            run is writing to it.
    """

    def __init__(self, root: str | Path, meta: Mapping[str, Any]) -> None:
        self.root = Path(root)
        new = with_schema(meta)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # First of all, so that of two runs that start together only one looks any further.
            self._manifest = JsonlAppender(self.root / MANIFEST_NAME)
        except OSError as error:
            raise ImageSetError(f"cannot write to {self.root}: {error}") from error
        try:
            self.meta = self._continued(new)
        except BaseException:
            self._manifest.close()
            raise

    def _continued(self, new: dict[str, Any]) -> dict[str, Any]:
        """Return the meta of the set that is there, or write that of a new one."""
        old = read_meta(self.root)
        if old is not None:
            check_unchanged(self.root, old, new)
            return old
        if (self.root / MANIFEST_NAME).stat().st_size:
            raise ImageSetError(
                f"{self.root} has a {MANIFEST_NAME} but no {META_NAME}, so what its images were "
                "made with is unknown; use another folder"
            )
        try:
            write_meta(self.root, new)
        except OSError as error:
            raise ImageSetError(f"cannot write to {self.root}: {error}") from error
        return new

    def add(self, row: ImageRow, png: bytes | None) -> ImageRow:
        """Store one image (or none) and its row.

        Args:
            row: The row; `file` and `sha256` are filled in here.
            png: The image as a PNG file's bytes, or None where nothing is to be kept.

        Returns:
            The row as written.
        """
        values = asdict(row)
        if png is not None:
            folder = self.root / "images" / str(row.category_id)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{row.sample_id}.png"
            write_atomically(path, png)
            values["file"] = path.relative_to(self.root).as_posix()
            values["sha256"] = hashlib.sha256(png).hexdigest()
        self._manifest.append(values)
        return ImageRow(**values)

    def close(self) -> None:
        """Flush the manifest to the disk."""
        self._manifest.close()

    def __enter__(self) -> ImageSetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
