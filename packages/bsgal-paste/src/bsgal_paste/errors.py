"""Exceptions that callers may want to catch, each a subclass of a built-in one."""

from __future__ import annotations


class PoolFormatError(ValueError):
    """Report an instance pool that cannot be read: not a pool, another schema, a bad row."""


class EmptyPoolError(ValueError):
    """Report an instance pool without a single kept instance."""


class NoCommonCategoryError(ValueError):
    """Report that no category of a pool has a counterpart in the annotations."""


class CorruptInstanceError(ValueError):
    """Report one instance whose image is missing, truncated, too large or not RGBA.

    Attributes:
        instance_id: The instance in question.
    """

    def __init__(self, instance_id: str, message: str) -> None:
        super().__init__(instance_id, message)
        self.instance_id = instance_id

    def __str__(self) -> str:
        return str(self.args[1])


class AnnotationError(ValueError):
    """Report an annotation file that is not usable LVIS v1 JSON, naming the entry at fault."""


class SettingsError(ValueError):
    """A file of settings, or a flag, cannot be used: an unknown name, or a wrong value."""
