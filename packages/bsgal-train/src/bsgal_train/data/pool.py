"""A run's pool, its categories matched to those of the annotations."""

from __future__ import annotations

import logging
from pathlib import Path

from bsgal_paste import InstancePool
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.processes import group as processes

__all__ = ["open_pool"]

logger = logging.getLogger(__name__)


def open_pool(folder: str | Path, annotations: LvisAnnotations) -> InstancePool:
    """Open a pool, in all processes of a run, with the category ids of the annotations.

    `InstancePool.match` of bsgal-paste says how names are matched.

    Args:
        folder: Of the pool.
        annotations: Of the training images.

    Raises:
        ValueError: It is no pool, or has no category of the annotations.
    """
    with processes.first_before_others():
        # The first use of a large pool writes its index.
        pool = InstancePool.open(folder).match(annotations.categories)
    logger.info("pool: %d instances of %d categories", len(pool), len(pool.category_ids))
    return pool
