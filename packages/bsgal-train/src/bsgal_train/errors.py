"""Exceptions that a caller of this package can cause and may want to tell apart."""

from __future__ import annotations


class Detectron2MissingError(RuntimeError):
    """detectron2, or something it imports, is not installed."""


class Detectron2SetupError(RuntimeError):
    """Building or installing detectron2 failed; the message says at which step and what to do."""


class Detectron2OperatorError(RuntimeError):
    """A compiled operator was called that this pure-Python build of detectron2 lacks."""


class AnnotationError(ValueError):
    """An annotation file cannot be used; the message says where and how to mend it."""


class AnnotationFormatError(AnnotationError):
    """The file is not JSON in LVIS v1 layout."""


class UnknownCategoryError(AnnotationError):
    """An annotation names a category that the file does not define."""


class EmptyAnnotationsError(AnnotationError):
    """There is nothing to train on or to evaluate against."""


class MissingImagesError(AnnotationError):
    """Images that the annotation file lists are not on disk.

    Attributes:
        paths: every missing file, as text.
    """

    def __init__(self, message: str, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class CorruptImageError(ValueError):
    """One image cannot be read, or is not of the size that its annotations were made for."""


class TooManyCorruptImagesError(RuntimeError):
    """One unreadable image after another: training on the rest would be misleading."""


class DrawTableError(RuntimeError):
    """Published draw weights are missing, replaced too early or not alike in all processes."""


class LostProcessError(RuntimeError):
    """Another process of the same run has ended or cannot be reached."""


class OtherModelError(ValueError):
    """A checkpoint holds the state of another model than the one to be trained."""


class ProcessDiedError(RuntimeError):
    """One of the processes of a run has ended before its work was done."""


class TooLittleMemoryError(RuntimeError):
    """A run cannot fit into memory; the message says what would."""
