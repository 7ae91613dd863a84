"""Draws a batch in pieces that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from ._pipelines import Drawing, ImagePipeline
from ._plan import Sample
from .config import SamplingConfig
from .errors import OutOfMemoryError

logger = logging.getLogger(__name__)


class BatchDrawer:
    """Draws batches, and halves the piece it draws at a time when memory runs out.

    The smaller piece stays for the rest of the run: a size that failed once would fail again.

    Attributes:
        piece_size: How many images are drawn in one call at present.
    """

    def __init__(self, pipeline: ImagePipeline, config: SamplingConfig, batch_size: int) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"`batch_size` must be an int of at least 1, got {batch_size!r}")
        self.pipeline = pipeline
        self.config = config
        self.piece_size = batch_size

    def draw(self, batch: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], Drawing]]:
        """Yield the batch piece by piece: the samples and their drawing.

        Raises:
            OutOfMemoryError: A single image does not fit.
        """
        start = 0
        while start < len(batch):
            piece = batch[start : start + self.piece_size]
            drawing = self._try_to_draw(piece)
            if drawing is None:
                self.piece_size = max(1, len(piece) // 2)
                logger.warning("out of memory; going on with %d images at a time", self.piece_size)
                continue
            yield piece, drawing
            start += len(piece)

    def _try_to_draw(self, piece: Sequence[Sample]) -> Drawing | None:
        try:
            return self.pipeline.draw(piece, self.config)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(piece) == 1:
                raise OutOfMemoryError(
                    "memory ran out while drawing a single image; use smaller images, half "
                    f"precision, or a smaller model ({error})"
                ) from error
        # Only here, after the exception and the tensors its traceback holds are gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        "out of memory" in text or "can't allocate memory" in text
    )
