"""What the models of the transformers library have in common: how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from bsgal_mask._checkpoint import load_checkpoint


class Loading(TypedDict, total=False):
    """The optional arguments of `Pretrained`."""

    revision: str | None
    device: str
    dtype: str
    batch_size: int | None


class Pretrained:
    """Load a model; subclasses say which, and what it is for.

    Args:
        model: A folder that `save_pretrained` wrote, or a hub id such as `"owner/name"`.
        revision: Commit, tag or branch of a hub id; allows downloading.
        device: The torch device to run on, and no other.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`.
        batch_size: Images per run of the model, whatever their sizes; bounds its memory. None
            takes the class's own. Results depend on it by no more than rounding.

    Raises:
        MissingModelError: The libraries or the model are not installed; the message says how to.
        ValueError: A setting is impossible, or the files hold another kind of model.
    """

    model_class: ClassVar[str]
    """Name of the class in transformers."""
    extra: ClassVar[str]
    """This package's extra that installs what is needed."""
    has_text: ClassVar[bool]
    """Whether a tokenizer belongs to the model."""
    default_batch_size: ClassVar[int]
    """Images per run of the model, unless `batch_size` says otherwise."""

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int | None = None,
    ) -> None:
        self.batch_size = self.default_batch_size if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        self._checkpoint = load_checkpoint(
            model,
            model_class=self.model_class,
            extra=self.extra,
            has_text=self.has_text,
            revision=revision,
            device=device,
            dtype=dtype,
        )

    def config(self) -> Mapping[str, Any]:
        """Return what decides the results."""
        return self._checkpoint.config
