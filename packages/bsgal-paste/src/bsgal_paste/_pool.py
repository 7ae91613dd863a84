"""The instance pool: which instances there are, and their pixels when one is asked for."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgal_paste._arrays import ByteArray, IntArray
from bsgal_paste._index_file import open_index
from bsgal_paste._instance_images import ArrayImages, FileImages, InstanceImages
from bsgal_paste._names import CategoryLike, NameMatcher, category_names, is_category_id
from bsgal_paste._paths import as_path
from bsgal_paste._pool_index import PoolIndex, PoolRow, read_pool_meta
from bsgal_paste.errors import EmptyPoolError, NoCommonCategoryError

_log = logging.getLogger(__name__)

DEFAULT_MAX_IMAGE_PIXELS = 4096 * 4096


@dataclass(frozen=True, slots=True)
class PoolInstance:
    """Hold one instance's pixels.

    Attributes:
        instance_id: Unique in the pool.
        category_id: The pool's own id, or the annotations' after `InstancePool.match`.
        rgba: uint8 `(h, w, 4)`, straight alpha, cropped to the object.
        label_mask_threshold: A pixel belongs to the object where alpha >= this, 0-255.
    """

    instance_id: str
    category_id: int
    rgba: ByteArray
    label_mask_threshold: int


@dataclass(frozen=True, slots=True)
class PoolCard:
    """Summarise a pool: what is in it and where it came from.

    Attributes:
        path: The pool's folder, or None for a pool in memory.
        n_kept: Instances that can be drawn.
        n_dropped: Rows of the manifest that its writer dropped.
        counts: Instances per category id.
        category_names: Name per category id.
        unmatched: Names of pool categories that `match` left out.
        manifest_sha256: Hash of the manifest, empty for a pool in memory.
        meta: The pool's `meta.json`.
    """

    path: str | None
    n_kept: int
    n_dropped: int
    counts: dict[int, int]
    category_names: dict[int, str]
    unmatched: tuple[str, ...]
    manifest_sha256: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Segments:
    """Say which runs of the index belong to the pool: sorted by category id, then by start."""

    starts: IntArray
    lengths: IntArray
    category_ids: IntArray
    names: dict[int, str]
    unmatched: tuple[str, ...] = ()

    @classmethod
    def of(cls, index: PoolIndex) -> _Segments:
        ids, starts, lengths = np.unique(index.category_ids, return_index=True, return_counts=True)
        return cls(
            starts.astype(np.int64), lengths.astype(np.int64), ids, dict(index.category_names)
        )


class InstancePool:
    """Give access to the instances of a pool by position 0 .. len - 1.

    Positions are sorted by category id, so each category is one range. Images are read when
    asked for. The object pickles as a few arrays, about 100 bytes per instance.

    Build one with `InstancePool.open` or `InstancePool.from_arrays`; `open_folder_pool`,
    `open_xpaste_pool` and `lvis_pool` read other sources.
    """

    def __init__(
        self,
        index: PoolIndex,
        images: InstanceImages,
        meta: Mapping[str, Any],
        *,
        segments: _Segments | None = None,
    ) -> None:
        self._index = index
        self._images = images
        self._meta = dict(meta)
        self._segments = segments or _Segments.of(index)
        self._stops = np.cumsum(self._segments.lengths)
        self._category_ids, first = np.unique(self._segments.category_ids, return_index=True)
        self._counts = np.add.reduceat(self._segments.lengths, first) if len(first) else first
        self._n_instances = int(self._segments.lengths.sum())
        self._first = self._stops[first] - self._segments.lengths[first]

    @classmethod
    def open(
        cls, path: str | Path, *, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    ) -> InstancePool:
        """Open a pool folder as written by `bsgal-mask`.

        The index of a large pool (50,000 instances or more) is kept in its folder on first use,
        as `manifest.index`: opening it again takes milliseconds, and processes share its memory.

        Args:
            path: Folder with `meta.json`, `manifest.jsonl` and the images.
            max_image_pixels: An instance image with more pixels than this is refused unread.

        Raises:
            PoolFormatError: No pool, another schema version, or a malformed row.
            EmptyPoolError: No row of the pool is kept.
        """
        root = as_path(path, "path")
        meta = read_pool_meta(root)
        index = open_index(root)
        if not len(index.instance_ids):
            raise EmptyPoolError(
                f"the pool {root} has no kept instance ({index.n_dropped} rows, all dropped); "
                "look at the reasons in its manifest.jsonl"
            )
        return cls(index, FileImages(root, index, max_image_pixels, "manifest.jsonl"), meta)

    @classmethod
    def from_arrays(
        cls,
        rgba_images: Sequence[npt.NDArray[np.uint8]],
        category_ids: Sequence[int],
        *,
        category_names: Mapping[int, str] | None = None,
        instance_ids: Sequence[str] | None = None,
        label_mask_threshold: int = 128,
    ) -> InstancePool:
        """Build a pool in memory, empty if need be.

        Args:
            rgba_images: uint8 RGBA arrays `(h, w, 4)` of any sizes, straight alpha.
            category_ids: Category of each image.
            category_names: Name of each category; its id in decimal if not given.
            instance_ids: Unique names; `memory-0`, `memory-1`, ... if not given.
            label_mask_threshold: A pixel belongs to the object where alpha >= this, 0-255.

        Raises:
            TypeError: An image is not uint8, an instance id or a name no text, or an argument no
                sequence.
            ValueError: Lengths differ, an image is not RGBA, ids repeat, or an id or the threshold
                is out of range.
        """
        names = {} if category_names is None else category_names
        ids = instance_ids
        if ids is None and isinstance(rgba_images, Sized):
            ids = [f"memory-{i}" for i in range(len(rgba_images))]
        _check_arrays(rgba_images, category_ids, names, ids, label_mask_threshold)
        assert ids is not None
        rows = [
            PoolRow(int(category_id), instance_id, int(label_mask_threshold), line=i)
            for i, (category_id, instance_id) in enumerate(zip(category_ids, ids, strict=True))
        ]
        decimal = {row.category_id: str(row.category_id) for row in rows}
        index = PoolIndex.of(rows, {**decimal, **names})
        # In place of lines of a manifest, the sorted index says where each row came from.
        images = ArrayImages([rgba_images[i] for i in index.lines.tolist()])
        return cls(index, images, {})

    def __len__(self) -> int:
        return self._n_instances

    @property
    def category_ids(self) -> IntArray:
        """Give the ids of the categories that have instances, sorted, `(C,)`."""
        return self._category_ids

    @property
    def counts(self) -> IntArray:
        """Give the number of instances of each of `category_ids`, `(C,)`, all positive."""
        return self._counts

    @property
    def first_positions(self) -> IntArray:
        """Give the position of the first instance of each of `category_ids`, `(C,)`."""
        return self._first

    @property
    def category_names(self) -> dict[int, str]:
        """Give the name of each category id."""
        return dict(self._segments.names)

    def positions_of(self, category_id: int) -> range:
        """Give the positions of a category's instances; empty if there are none."""
        slot = int(np.searchsorted(self._category_ids, category_id))
        if slot == len(self._category_ids) or self._category_ids[slot] != category_id:
            return range(0)
        first = int(self._first[slot])
        return range(first, first + int(self._counts[slot]))

    def category_ids_of(self, positions: npt.ArrayLike) -> IntArray:
        """Give the category id at each position, `(n,)`."""
        segment = np.searchsorted(self._stops, self._checked(positions), side="right")
        return self._segments.category_ids[segment]

    def instance_id(self, position: int) -> str:
        """Give the instance id at a position."""
        return self._index.instance_ids[self._row(position)]

    def position_of(self, instance_id: str) -> int:
        """Find an instance, by bisection in each category.

        Raises:
            ValueError: The pool has no such instance.
        """
        own = self._segments
        for start, length, stop in zip(own.starts, own.lengths, self._stops, strict=True):
            rows = range(int(start), int(start + length))
            found = bisect_left(rows, instance_id, key=self._index.instance_ids.__getitem__)
            if found < length and self._index.instance_ids[rows[found]] == instance_id:
                return int(stop - length) + found
        raise ValueError(f"the pool has no instance {instance_id!r}")

    def file(self, position: int) -> str | None:
        """Give the path of an instance's file, if it has one of its own."""
        return self._images.file(self._row(position))

    def read(self, position: int) -> PoolInstance:
        """Read one instance's image.

        Raises:
            CorruptInstanceError: The file is missing, truncated, too large or not RGBA.
            IndexError: There is no such position.
        """
        return self._instance(position, self._images.read)

    def read_weighted(self, position: int) -> PoolInstance:
        """Read one instance with its colours multiplied by its alpha, the form for resizing.

        Raises:
            CorruptInstanceError: As `read`.
            IndexError: There is no such position.
        """
        return self._instance(position, self._images.weighted)

    def _instance(self, position: int, read: Callable[[int], ByteArray]) -> PoolInstance:
        row, segment = self._locate(position)
        return PoolInstance(
            instance_id=self._index.instance_ids[row],
            category_id=int(self._segments.category_ids[segment]),
            rgba=read(row),
            label_mask_threshold=int(self._index.label_mask_thresholds[row]),
        )

    def match(self, categories: Iterable[CategoryLike | Mapping[str, Any]]) -> InstancePool:
        """Give the same pool with the category ids of an annotation file, matched by name.

        A pool category takes the annotation category of the same name; failing that of the same
        name but for a parenthesis that only one of them has; failing that one with it as a
        synonym. Matches of the last two kinds are logged. Two names that the pool itself has as
        different categories never match. Categories without a counterpart, or with several equally
        good ones, are left out; they are logged and listed in the card.

        Args:
            categories: The `categories` of an LVIS file, or objects with `category_id`, `name`
                and `synonyms`.

        Raises:
            AnnotationError: A category is malformed.
            NoCommonCategoryError: No category matches, or none but several equally well.
        """
        wanted = category_names(categories)
        own = self._segments
        matcher = NameMatcher(wanted, own.names.values())
        matches = {i: matcher.find(own.names[i]) for i in own.names}
        found = {i: match.category_ids for i, match in matches.items()}
        left_out = tuple(own.names[i] for i, ids in found.items() if len(ids) != 1)
        keep = np.array([len(found[int(i)]) == 1 for i in own.category_ids], dtype=bool)
        several = {own.names[i]: ids for i, ids in found.items() if len(ids) > 1}
        if several and not keep.any():
            name, alike = next(iter(several.items()))
            raise NoCommonCategoryError(
                f"the pool's {name!r} is ambiguous: it stands for the annotations' categories "
                f"{', '.join(map(str, alike))} alike, and no other of the pool has a counterpart; "
                "give each category of the annotations a name of its own"
            )
        if not keep.any():
            raise NoCommonCategoryError(
                "the pool and the annotations have no category in common; "
                f"the pool has {_some(own.names.values())}, "
                f"the annotations have {_some(category.name for category in wanted)}"
            )
        if left_out:
            _log.warning(
                "%d of %d pool categories have no (single) counterpart in the annotations: %s",
                len(left_out), len(own.names), _some(left_out),
            )  # fmt: skip
        ids = np.array([found[int(i)][0] for i in own.category_ids[keep]], dtype=np.int64)
        order = np.lexsort((own.starts[keep], ids))
        names = {category.category_id: category.name for category in wanted}
        for i, match in matches.items():
            if len(match.category_ids) == 1 and match.how != "name":
                _log.warning(
                    "the pool's %r stands for the annotations' %r (matched by %s, not by name)",
                    own.names[i], names[match.category_ids[0]], match.how,
                )  # fmt: skip
        segments = _Segments(
            own.starts[keep][order],
            own.lengths[keep][order],
            ids[order],
            {int(i): names[int(i)] for i in np.unique(ids)},
            own.unmatched + left_out,
        )
        return InstancePool(self._index, self._images, self._meta, segments=segments)

    def card(self) -> PoolCard:
        """Summarise the pool."""
        return PoolCard(
            path=self._images.location,
            n_kept=len(self),
            n_dropped=self._index.n_dropped,
            counts=dict(zip(self._category_ids.tolist(), self._counts.tolist(), strict=True)),
            category_names=self.category_names,
            unmatched=self._segments.unmatched,
            manifest_sha256=self._index.manifest_sha256,
            meta=dict(self._meta),
        )

    def _row(self, position: int) -> int:
        return self._locate(position)[0]

    def _locate(self, position: int) -> tuple[int, int]:
        """Give row of the index and segment of a position."""
        if not 0 <= position < len(self):
            raise IndexError(f"positions must be 0 .. {len(self) - 1}, got {position}")
        segment = int(np.searchsorted(self._stops, position, side="right"))
        own = self._segments
        first = int(self._stops[segment] - own.lengths[segment])
        return int(own.starts[segment]) + position - first, segment

    def _checked(self, positions: npt.ArrayLike) -> IntArray:
        checked = np.asarray(positions, dtype=np.int64)
        if checked.size and (checked.min() < 0 or checked.max() >= len(self)):
            raise IndexError(
                f"positions must be 0 .. {len(self) - 1}, got {checked.min()} .. {checked.max()}"
            )
        return checked


def _check_arrays(
    rgba_images: object, category_ids: object, names: object, ids: object, threshold: object
) -> None:
    for name, value in (
        ("rgba_images", rgba_images), ("category_ids", category_ids), ("instance_ids", ids),
    ):  # fmt: skip
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
            raise TypeError(f"`{name}` must be a sequence, got {type(value).__name__}")
    assert isinstance(rgba_images, Sized)
    assert isinstance(category_ids, Sequence | np.ndarray)
    assert isinstance(ids, Sequence | np.ndarray)
    n = len(rgba_images)
    if len(category_ids) != n or len(ids) != n:
        raise ValueError(
            f"{n} images need {n} `category_ids` and `instance_ids`, "
            f"got {len(category_ids)} and {len(ids)}"
        )
    if not all(isinstance(i, str) for i in ids):
        raise TypeError("`instance_ids` must be texts")
    if len(set(ids)) != n:
        raise ValueError("`instance_ids` must be unique")
    if not all(is_category_id(i) for i in category_ids):
        raise ValueError(f"`category_ids` must be integers from 0 to 2^63 - 1: {category_ids}")
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise TypeError("`category_names` must map category ids to texts")
    if not isinstance(threshold, int | np.integer):
        raise TypeError(f"`label_mask_threshold` must be an int, got {type(threshold).__name__}")
    if not 0 <= threshold <= 255:
        raise ValueError(f"`label_mask_threshold` must be 0-255, got {threshold}")


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
