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
import pyarrow.parquet as pq

from bsgal_train.evaluation.columns import Prediction, PredictionColumns

__all__ = ["SCHEMA", "PredictionShards", "PredictionWriter"]

SCHEMA = "bsgal.predictions/1"

N_BUCKETS = 32

_ROWS_IN_MEMORY = 65_536

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
        self.n_predictions: int = sum(meta["n_predictions"] for meta in metas)
        self._check_images()

    def __len__(self) -> int:
        """Count the predictions."""
        return self.n_predictions

    def heads(self) -> tuple[list[npt.NDArray[np.int64]], PredictionColumns]:
        """Read ids and scores of everything, in the order in which they were predicted.

        Returns:
            For each bucket the positions (among all) of its predictions; and the columns of all,
            without boxes and masks.
        """
        fields = ["sequence", "image_id", "category_id", "score"]
        parts, process, bucket = [], [], []
        for number in range(self.n_buckets):
            for index, table in self._tables(number, fields):
                parts.append([table[field].to_numpy() for field in fields])
                process.append(np.full(len(table), index))
                bucket.append(np.full(len(table), number))
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            empty = PredictionColumns(none, none, none.astype(np.float64), None, None, None)
            return [none] * self.n_buckets, empty
        sequence, image_id, category_id, score = map(np.concatenate, zip(*parts, strict=True))
        order = np.lexsort((sequence, np.concatenate(process)))
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        buckets = np.concatenate(bucket)
        columns = PredictionColumns(
            image_id[order], category_id[order], score[order], None, None, None
        )
        return [position[buckets == number] for number in range(self.n_buckets)], columns

    def bucket(self, number: int, iou_types: Sequence[str]) -> PredictionColumns:
        """Read the predictions of a bucket, in the order of `heads`' positions."""
        fields = ["image_id", "category_id", "score"]
        if "bbox" in iou_types:
            fields += ["x", "y", "width", "height"]
        if "segm" in iou_types:
            fields += ["mask_height", "mask_width", "mask_counts"]
        tables = [table for _, table in self._tables(number, fields)]
        table = pa.concat_tables(tables) if tables else _COLUMNS.empty_table()

        def stacked(*names: str) -> Any:
            return np.stack([table[name].to_numpy() for name in names], axis=1)

        has_masks = "segm" in iou_types
        return PredictionColumns(
            image_id=table["image_id"].to_numpy(),
            category_id=table["category_id"].to_numpy(),
            score=table["score"].to_numpy(),
            bbox_xywh=stacked("x", "y", "width", "height") if "bbox" in iou_types else None,
            mask_hw=stacked("mask_height", "mask_width").astype(np.int64) if has_masks else None,
            mask_counts=table["mask_counts"].to_pylist() if has_masks else None,
        )

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield every prediction as a mapping, as LVIS results are; not in order."""
        for number in range(self.n_buckets):
            columns = self.bucket(number, ("bbox", "segm"))
            assert columns.bbox_xywh is not None
            assert columns.mask_hw is not None
            assert columns.mask_counts is not None
            for image_id, category_id, score, box, size, counts in zip(
                columns.image_id.tolist(),
                columns.category_id.tolist(),
                columns.score.tolist(),
                columns.bbox_xywh.tolist(),
                columns.mask_hw.tolist(),
                columns.mask_counts,
                strict=True,
            ):
                yield {
                    "image_id": image_id,
                    "category_id": category_id,
                    "score": score,
                    "bbox": box,
                    "segmentation": {"size": size, "counts": counts},
                }

    def _tables(self, bucket: int, fields: list[str]) -> Iterator[tuple[int, pa.Table]]:
        for index, shard in enumerate(self._shards):
            path = shard / f"bucket-{bucket:03d}.parquet"
            if path.is_file():
                yield index, pq.read_table(path, columns=fields)

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
