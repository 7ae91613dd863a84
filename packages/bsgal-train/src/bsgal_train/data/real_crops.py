"""Random crops of real images with their annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsgal_paste import AnnotatedImage
from bsgal_train.annotations import ImageRecord, LvisAnnotations
from bsgal_train.annotations.read_image import read_image
from bsgal_train.data.crop import RandomCrop
from bsgal_train.data.masks import crop_masks
from bsgal_train.data.samples import REAL, LabelledImage, labelled_image

__all__ = ["RealCrop", "RealCrops"]


@dataclass(frozen=True, slots=True, eq=False)
class RealCrop:
    """Hold a crop of a real image with the objects that are left in it.

    Attributes:
        record: The whole image's.
        content: Image, masks, boxes and categories of the N objects.
        class_indices: N class indices.
        annotation_ids: int64 `(N,)`, as in the annotation file.
    """

    record: ImageRecord
    content: AnnotatedImage
    class_indices: list[int]
    annotation_ids: npt.NDArray[np.int64]

    def labelled(self) -> LabelledImage:
        """Give the crop as it was annotated."""
        return labelled_image(
            self.record,
            self.content.image,
            self.content.masks,
            self.content.boxes_xyxy,
            class_indices=self.class_indices,
            source=[REAL] * len(self.class_indices),
            annotation_ids=self.annotation_ids,
            visible_frac=np.ones(len(self.class_indices)),
        )


class RealCrops:
    """Read images of an annotation file and crop them at random.

    Args:
        annotations: The images and their objects.
        crop: How a crop is drawn.
    """

    def __init__(self, annotations: LvisAnnotations, crop: RandomCrop) -> None:
        self._images = annotations.images
        self._crop = crop
        self._category_ids = np.array([c.category_id for c in annotations.categories])

    def draw(self, image_index: int, rng: np.random.Generator) -> RealCrop:
        """Read one image and crop it; objects without a pixel in the crop are left out.

        Raises:
            CorruptImageError: The image cannot be read.
        """
        record = self._images[image_index]
        window = self._crop.sample((record.height, record.width), rng)
        image = read_image(record)
        masks, positions = crop_masks(record, window)
        left = [record.instances[position] for position in positions]
        class_indices = [instance.class_index for instance in left]
        return RealCrop(
            record,
            AnnotatedImage(window.apply(image), masks, self._category_ids[class_indices]),
            class_indices,
            np.array([instance.annotation_id for instance in left], dtype=np.int64),
        )
