"""Look through annotations, images and pool before a run, and report everything at once.

Loading stops at the first mistake; this lists all of them, and what is allowed but unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from bsgal_train.annotations.findings import (
    Finding,
    annotation_findings,
    pool_findings,
    split_findings,
)
from bsgal_train.annotations.layout_check import layout_problems
from bsgal_train.annotations.lvis import LvisAnnotations, read_lvis_json
from bsgal_train.errors import AnnotationError, CorruptImageError

__all__ = ["DataReport", "Finding", "check_data"]


MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class DataReport:
    """Hold what was found.

    Attributes:
        findings: In the order of the files.
    """

    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Say whether a run can start: there is no error among the findings."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{finding.severity}: {finding.text}" for finding in self.findings]
        n_errors, n_warnings = (
            sum(finding.severity == severity for finding in self.findings)
            for severity in ("error", "warning")
        )
        return "\n".join([*lines, f"errors: {n_errors}, warnings: {n_warnings}"])


def check_data(
    train_json: str | Path,
    image_root: str | Path,
    *,
    val_json: str | Path | None = None,
    val_image_root: str | Path | None = None,
    pool: str | Path | None = None,
    read_images: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Check the data of a run.

    Args:
        train_json: LVIS v1 annotations to train on.
        image_root: Folder of their images.
        val_json: Annotations to evaluate on.
        val_image_root: Folder of their images; `image_root` if not given.
        pool: Folder of an instance pool.
        read_images: Decode every image, which finds broken ones; minutes for a large set.
        progress: Called with the number of images read and of all images of the file.
    """
    findings: list[Finding] = []
    training = _load(Path(train_json), Path(image_root), "training", findings)
    validation = None
    if val_json is not None:
        root = Path(val_image_root or image_root)
        validation = _load(Path(val_json), root, "validation", findings)
    if read_images:
        for split in filter(None, (training, validation)):
            findings += _image_findings(split, progress)
    if training is not None and validation is not None:
        findings += split_findings(training, validation)
    if training is not None and pool is not None:
        findings += pool_findings(Path(pool), training)
    return DataReport(tuple(findings))


def _load(
    path: Path,
    image_root: Path,
    role: Literal["training", "validation"],
    findings: list[Finding],
) -> LvisAnnotations | None:
    """Load a file if it can be, adding what there is to say about it."""
    try:
        document = read_lvis_json(path)
        problems = list(islice(layout_problems(document, path), MAX_LISTED + 1))
        findings += [Finding("error", str(problem)) for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            findings.append(Finding("error", f"{path}: and more; mend these first"))
        if problems:
            return None
        annotations = LvisAnnotations.from_document(document, path, image_root)
    except AnnotationError as error:
        findings.append(Finding("error", str(error)))
        return None
    findings += annotation_findings(document, annotations, role)
    return annotations


def _image_findings(
    annotations: LvisAnnotations, progress: Callable[[int, int], None] | None
) -> Iterator[Finding]:
    # Imported here because the package around it needs detectron2, which may not be there yet.
    from bsgal_train.annotations.read_image import read_image

    broken = []
    for n_read, record in enumerate(annotations.images, start=1):
        try:
            read_image(record)
        except CorruptImageError as error:
            broken.append(str(error))
        if progress is not None:
            progress(n_read, len(annotations.images))
    yield from (Finding("error", text) for text in broken[:MAX_LISTED])
    if len(broken) > MAX_LISTED:
        more = len(broken) - MAX_LISTED
        yield Finding("error", f"{annotations.path}: {more} more images cannot be read")
