"""Exceptions of this package; each is a subclass of the built-in a caller would expect."""

from __future__ import annotations


class ImageSetError(ValueError):
    """An image set as a whole cannot be read: missing, malformed, or of another schema."""


class PoolError(ValueError):
    """An instance pool cannot be written or read: another schema, or another configuration."""


class ImageError(ValueError):
    """One image cannot be used; a run drops it with the reason and goes on."""


class SegmentationError(RuntimeError):
    """A method failed on an image; a run drops that image with the reason and goes on.

    Where a method fails on many images in a row, the run ends with this.
    """


class MissingModelError(RuntimeError):
    """A model file, or the library that runs it, is not installed; the message says how to."""


class RealCropError(ValueError):
    """Real objects to compare with cannot be read: annotations or an image of theirs."""


class SettingsError(ValueError):
    """A file of settings, or a flag, cannot be used: an unknown name, or a wrong value."""
