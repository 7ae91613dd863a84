"""Exceptions that callers may want to tell apart; each is a subclass of a built-in one."""

from __future__ import annotations


class CategoryFileError(ValueError):
    """A category file is missing, unreadable or inconsistent."""


class PromptError(ValueError):
    """A template cannot be filled, or two categories would get the same prompt."""


class ImageSetError(ValueError):
    """A folder is not an image set of a schema this version reads, or its manifest is damaged."""


class ConfigChangedError(ValueError):
    """An existing image set was made with another configuration, so it cannot be continued."""


class ModelNotFoundError(ValueError):
    """A pipeline is not available locally; the message says how to get it."""


class OutOfMemoryError(RuntimeError):
    """Memory ran out even with a single image in the batch."""


class WorkerError(RuntimeError):
    """A worker process failed in a way that another worker cannot mend."""


class NonfiniteImagesError(RuntimeError):
    """A pipeline gave nothing but NaN or infinite values, so it cannot work as it is loaded."""


class SettingsError(ValueError):
    """A file of settings, or a flag, cannot be used: an unknown name, or a wrong value."""
