"""Where the annotations and images of a recipe are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bsgal_train.annotations.lvis import LvisAnnotations
from bsgal_train.builtin_dataset.dataset import ensure_builtin_dataset
from bsgal_train.processes import group as processes
from bsgal_train.recipe import DataConfig

__all__ = ["DataPaths"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPaths:
    """Annotation files and image folders, those of the built-in set where a recipe names none.

    Attributes:
        train_json: annotations of the training images.
        image_root: folder of the training images.
        val_json: annotations of the validation images, None if there are none.
        val_image_root: folder of the validation images.
    """

    train_json: Path
    image_root: Path
    val_json: Path | None
    val_image_root: Path

    @classmethod
    def of(cls, config: DataConfig) -> DataPaths:
        """Return a recipe's paths; makes the built-in set if it is used and not there yet."""
        if not config.train_json:
            with processes.first_before_others():
                builtin = ensure_builtin_dataset(config.builtin_root)
            return cls(
                train_json=builtin.train_json,
                image_root=builtin.image_root,
                val_json=builtin.val_json,
                val_image_root=builtin.image_root,
            )
        return cls(
            train_json=Path(config.train_json),
            image_root=Path(config.image_root),
            val_json=Path(config.val_json) if config.val_json else None,
            val_image_root=Path(config.val_image_root or config.image_root),
        )

    def load_training(self) -> LvisAnnotations:
        """Read the training annotations, with all their checks."""
        return LvisAnnotations.load(self.train_json, self.image_root)

    def load_validation(self) -> LvisAnnotations | None:
        """Read the validation annotations, if there are any."""
        if self.val_json is None:
            return None
        return LvisAnnotations.load(self.val_json, self.val_image_root)
