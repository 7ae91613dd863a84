"""Random crops of real images with their annotations."""

from __future__ import annotations

from typing import Any

import numpy as np

from bsgal_paste import AnnotatedImage
from bsgal_train.annotations import ImageRecord, LvisAnnotations
from bsgal_train.annotations.read_image import read_image
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.masks import crop_masks
from bsgal_train.data.samples import REAL, training_input

__all__ = ["RealCrops"]


class RealCrops:
    """Read images of an annotation file and crop them at random.

    Args:
        annotations: The images and their objects.
        crop: How a crop is drawn.
    """

    def __init__(self, annotations: LvisAnnotations, crop: RandomCrop) -> None:
        self.annotations = annotations
        self._crop = crop
        self._category_ids = np.array([c.category_id for c in annotations.categories])

    def draw(
        self, image_index: int, rng: np.random.Generator
    ) -> tuple[ImageRecord, AnnotatedImage]:
        """Read one image and crop it; objects without a pixel in the crop are left out.

        Raises:
            CorruptImageError: The image cannot be read.
        """
        record = self.annotations.images[image_index]
        window = self._crop.sample((record.height, record.width), rng)
        image = read_image(record)
        masks, left = crop_masks(record, window)
        class_indices = [record.instances[position].class_index for position in left]
        crop = AnnotatedImage(window.apply(image), masks, self._category_ids[class_indices])
        return record, crop

    def real_input(self, record: ImageRecord, crop: AnnotatedImage) -> dict[str, Any]:
        """Build the detectron2 input of a crop without pasted objects."""
        class_index_of = self.annotations.class_index_of
        return training_input(
            record,
            crop.image,
            crop.masks,
            crop.boxes_xyxy,
            [class_index_of[category_id] for category_id in crop.category_ids.tolist()],
            [REAL] * len(crop),
        )
