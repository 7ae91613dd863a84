"""Predictions on disk: one shard per process, split by category, read a few categories at a time.

    predictions/process-0000/meta.json
    predictions/process-0000/bucket-000.parquet      categories whose id leaves remainder 0 by 32
    predictions/process-0000/bucket-001.parquet      ... remainder 1
    predictions/process-0001/...

Processes write on their own and nothing is gathered; evaluation holds one bucket of all processes
in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bsgal_train.evaluation.columns import Prediction, PredictionColumns
from bsgal_train.evaluation.ground_truth import contains
from bsgal_train.evaluation.run_lengths import run_bounds

__all__ = ["SCHEMA", "PredictionShards", "PredictionWriter"]

SCHEMA = "bsgal.predictions/1"

N_BUCKETS = 32

_ROWS_IN_MEMORY = 65_536

# Predictions whose scores are sorted together to find those over the limit.
_ROWS_SORTED = 2_000_000

_COLUMNS = pa.schema(
    [
        ("sequence", pa.int64()),
        ("image_id", pa.int64()),
        ("category_id", pa.int64()),
        ("score", pa.float64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("width", pa.float64()),
        ("height", pa.float64()),
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
        ("mask_counts", pa.string()),
    ]
)


class PredictionWriter:
    """Write the predictions of one process; use it as a context manager.

    The shard appears under its name when the block ends without an error; an earlier one is
    replaced.

    Args:
        folder: Of all processes' shards; made if missing.
        process: Number of this process.
        n_processes: How many write.
    """

    def __init__(self, folder: str | Path, process: int = 0, n_processes: int = 1) -> None:
        if not 0 <= process < n_processes:
            raise ValueError(
                f"`process` must be in [0, n_processes), got {process} of {n_processes}"
            )
        self._target = Path(folder) / f"process-{process:04d}"
        self._temporary = self._target.with_suffix(".tmp")
        self._n_processes = n_processes
        self._rows: list[Prediction] = []
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._n_written = 0

    def __enter__(self) -> PredictionWriter:
        if self._temporary.exists():
            shutil.rmtree(self._temporary)
        self._temporary.mkdir(parents=True)
        return self

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write predictions with image_id, category_id, score, bbox and segmentation (RLE)."""
        self._rows += predictions
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        for writer in self._writers.values():
            writer.close()
        if kind is not None:
            shutil.rmtree(self._temporary)
            return
        meta = {
            "schema": SCHEMA,
            "n_processes": self._n_processes,
            "n_buckets": N_BUCKETS,
            "n_predictions": self._n_written,
        }
        (self._temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
        if self._target.exists():
            shutil.rmtree(self._target)
        self._temporary.replace(self._target)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        table = _table(rows, self._n_written)
        self._n_written += len(rows)
        buckets = np.array([row["category_id"] for row in rows]) % N_BUCKETS
        order = np.argsort(buckets, kind="stable")
        starts = np.searchsorted(buckets[order], np.arange(N_BUCKETS + 1))
        for bucket in range(N_BUCKETS):
            positions = order[starts[bucket] : starts[bucket + 1]]
            if not len(positions):
                continue
            if bucket not in self._writers:
                path = self._temporary / f"bucket-{bucket:03d}.parquet"
                self._writers[bucket] = pq.ParquetWriter(path, _COLUMNS, compression="zstd")
            self._writers[bucket].write_table(table.take(pa.array(positions)))


def _table(rows: Sequence[Prediction], first: int) -> pa.Table:
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    masks = [row["segmentation"] for row in rows]
    sizes = np.array([mask["size"] for mask in masks], dtype=np.int32).reshape(-1, 2)
    columns: list[Any] = [
        np.arange(first, first + len(rows)),
        np.array([row["image_id"] for row in rows], dtype=np.int64),
        np.array([row["category_id"] for row in rows], dtype=np.int64),
        np.array([row["score"] for row in rows], dtype=np.float64),
        *boxes.T,
        *sizes.T,
        [_text(mask["counts"]) for mask in masks],
    ]
    return pa.table(columns, schema=_COLUMNS)


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


class PredictionShards:
    """The shards that `PredictionWriter` left in a folder, of all processes.

    Raises:
        ValueError: A process' shard is missing or of another schema, or an image was predicted by
            two processes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        shards = sorted(self.folder.glob("process-[0-9][0-9][0-9][0-9]"))
        if not shards:
            raise ValueError(f"there are no predictions in {self.folder} (no process-0000)")
        metas = [json.loads((path / "meta.json").read_text(encoding="utf-8")) for path in shards]
        for path, meta in zip(shards, metas, strict=True):
            if meta.get("schema") != SCHEMA:
                raise ValueError(
                    f"{path} has schema {meta.get('schema')!r}, this version reads {SCHEMA!r}"
                )
        n_processes = metas[0]["n_processes"]
        if [path.name for path in shards] != [f"process-{i:04d}" for i in range(n_processes)]:
            raise ValueError(
                f"{self.folder} must hold the shards of {n_processes} processes, it has "
                f"{[path.name for path in shards]}; predict again, into an empty folder"
            )
        self._shards = shards
        self.n_buckets: int = metas[0]["n_buckets"]
        self._n_predictions: list[int] = [meta["n_predictions"] for meta in metas]
        self.n_predictions = sum(self._n_predictions)
        self._check_images()

    def __len__(self) -> int:
        """Count the predictions."""
        return self.n_predictions

    def over_limit(self, per_image: int) -> npt.NDArray[np.int64]:
        """Find the predictions that leave more than so many with higher scores in their image.

        Of equal scores the earlier is the higher. Ids and scores are read of a bounded number of
        images at a time, and of none if no image has so many.

        Returns:
            Their positions, ascending.
        """
        found = [np.zeros(0, dtype=np.int64)]
        for image_ids in self._crowded(per_image):
            parts = []
            for number in range(self.n_buckets):
                heads = self._read(number, ["image_id", "score"])
                rows = np.flatnonzero(contains(image_ids, heads["image_id"]))
                parts.append([heads[name][rows] for name in ("image_id", "score", "position")])
            image_id, score, position = map(np.concatenate, zip(*parts, strict=True))
            order = np.lexsort((position, -score, image_id))
            bounds = run_bounds(image_id[order])
            rank = np.arange(len(order)) - np.repeat(bounds[:-1], np.diff(bounds))
            found.append(position[order[rank >= per_image]])
        return np.sort(np.concatenate(found))

    def bucket(self, number: int, iou_types: Sequence[str]) -> PredictionColumns:
        """Read the predictions of a bucket, in the order in which they were made."""
        fields = ["image_id", "category_id", "score"]
        if "bbox" in iou_types:
            fields += ["x", "y", "width", "height"]
        if "segm" in iou_types:
            fields += ["mask_height", "mask_width", "mask_counts"]
        columns = self._read(number, fields)

        def stacked(*names: str) -> Any:
            return np.stack([columns[name] for name in names], axis=1)

        has_masks = "segm" in iou_types
        return PredictionColumns(
            position=columns["position"],
            image_id=columns["image_id"],
            category_id=columns["category_id"],
            score=columns["score"],
            bbox_xywh=stacked("x", "y", "width", "height") if "bbox" in iou_types else None,
            mask_hw=stacked("mask_height", "mask_width").astype(np.int64) if has_masks else None,
            mask_counts=columns["mask_counts"] if has_masks else None,
        )

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield every prediction as a mapping, as LVIS results are; not in order."""
        for number in range(self.n_buckets):
            columns = self.bucket(number, ("bbox", "segm"))
            assert columns.bbox_xywh is not None
            assert columns.mask_hw is not None
            for image_id, category_id, score, box, size, counts in zip(
                columns.image_id.tolist(),
                columns.category_id.tolist(),
                columns.score.tolist(),
                columns.bbox_xywh.tolist(),
                columns.mask_hw.tolist(),
                columns.mask_counts.to_pylist(),
                strict=True,
            ):
                yield {
                    "image_id": image_id,
                    "category_id": category_id,
                    "score": score,
                    "bbox": box,
                    "segmentation": {"size": size, "counts": counts.decode("ascii")},
                }

    def _read(self, bucket: int, fields: Sequence[str]) -> dict[str, Any]:
        """Read columns of a bucket, and the positions of its predictions among all.

        Columns are arrays of NumPy; that of the masks is Arrow's, of binary values.
        """
        tables, first = [], 0
        for shard, n_predictions in zip(self._shards, self._n_predictions, strict=True):
            path = shard / f"bucket-{bucket:03d}.parquet"
            if path.is_file():
                table = pq.read_table(path, columns=["sequence", *fields])
                position = pc.add(table["sequence"], first)
                tables.append(table.append_column("position", position))
            first += n_predictions
        if not tables:
            empty = _COLUMNS.empty_table()
            tables = [empty.append_column("position", empty["sequence"])]
        table = pa.concat_tables(tables)
        return {
            name: table[name].cast(pa.large_binary())
            if name == "mask_counts"
            else table[name].to_numpy()
            for name in ("position", *fields)
        }

    def _crowded(self, limit: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the ids of images with more predictions than a limit, ascending, in blocks."""
        ids = [np.zeros(0, dtype=np.int64)]
        counts = [np.zeros(0, dtype=np.int64)]
        for number in range(self.n_buckets):
            own = np.unique(self._read(number, ["image_id"])["image_id"], return_counts=True)
            ids.append(own[0])
            counts.append(own[1])
        image_ids, inverse = np.unique(np.concatenate(ids), return_inverse=True)
        n_predictions = np.zeros(len(image_ids), dtype=np.int64)
        np.add.at(n_predictions, inverse, np.concatenate(counts))
        crowded = n_predictions > limit
        image_ids, block = image_ids[crowded], np.cumsum(n_predictions[crowded]) // _ROWS_SORTED
        for number in np.unique(block).tolist():
            yield image_ids[block == number]

    def _check_images(self) -> None:
        if len(self._shards) == 1:
            return
        seen: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        for shard in self._shards:
            own = [
                np.unique(pq.read_table(path, columns=["image_id"])["image_id"].to_numpy())
                for path in sorted(shard.glob("bucket-*.parquet"))
            ]
            images = np.unique(np.concatenate(own)) if own else seen[:0]
            twice = np.intersect1d(seen, images)
            if len(twice):
                raise ValueError(
                    f"image {twice[0]} was predicted by {shard.name} and by a process before it; "
                    "each image must be predicted once"
                )
            seen = np.union1d(seen, images)
