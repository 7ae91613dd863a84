"""Copy instances out of other annotated images: Simple Copy-Paste (Ghiasi et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from bsgal_paste._annotated_image import AnnotatedImage
from bsgal_paste._arrays import ByteArray, IntArray
from bsgal_paste._cutout import Cutout, place, shrink_or_enlarge
from bsgal_paste._lvis import LvisSource, load_lvis, read_annotated_image
from bsgal_paste._lvis_schema import has_segmentation


class Donors(Protocol):
    """Choose and read images to copy instances from."""

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> int:
        """Draw the index of a donor for a target with these categories."""

    def read(self, index: int) -> AnnotatedImage:
        """Give the donor; its `instance_ids` become those of the copies."""


class ImageDonors:
    """Draw uniformly from annotated images in memory.

    Args:
        images: The donors, with masks. Instances without an id are called
            `donor-<image>-<instance>`, counted from 0.

    Raises:
        ValueError: There is no image, or one has boxes only.
    """

    def __init__(self, images: Sequence[AnnotatedImage]) -> None:
        if not images:
            raise ValueError("`images` is empty; give at least one image to copy from")
        without_masks = [i for i, image in enumerate(images) if image.boxes_only]
        if without_masks:
            raise ValueError(
                f"`images` {without_masks[:10]} have boxes only; instances are copied by mask: "
                "give images with masks, or paste from a pool"
            )
        self._images = list(images)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> int:
        """Draw an index; `target_category_ids` plays no part."""
        return int(rng.integers(len(self._images)))

    def read(self, index: int) -> AnnotatedImage:
        """Give the donor with names for its instances."""
        image = self._images[index]
        names = [
            f"donor-{index}-{i}" if name is None else name
            for i, name in enumerate(image.instance_ids)
        ]
        return _renamed(image, names)


class LvisDonors:
    """Draw uniformly from the annotated images of an LVIS v1 file, read when drawn.

    Copies are called `annotation-<id>`. Crowd regions are not copied.

    Args:
        lvis: The parsed JSON or its path.
        image_root: Folder of the images.

    Raises:
        AnnotationError: The file is no LVIS JSON, or an entry is malformed.
        ValueError: No image has an annotation with a segmentation that is no crowd.
    """

    def __init__(self, lvis: LvisSource, image_root: str | Path) -> None:
        content = load_lvis(lvis)
        grouped = content.annotations_by_image()
        self._entries = [
            (image, kept)
            for image in content.images
            if (kept := [a for a in grouped[image["id"]] if _is_copied(a)])
        ]
        if not self._entries:
            raise ValueError(
                "no annotation has a segmentation; instances are copied by mask: give annotations "
                "with masks, or paste from a pool"
            )
        self._image_root = Path(image_root)

    def sample(self, rng: np.random.Generator, target_category_ids: IntArray) -> int:
        """Draw an index; `target_category_ids` plays no part."""
        return int(rng.integers(len(self._entries)))

    def read(self, index: int) -> AnnotatedImage:
        """Read a donor.

        Raises:
            AnnotationError: The image or a segmentation is damaged.
            FileNotFoundError: The image is missing.
        """
        image, annotations = self._entries[index]
        donor, used = read_annotated_image(image, annotations, self._image_root)
        return _renamed(donor, [f"annotation-{annotations[i]['id']}" for i in used])


@dataclass(frozen=True, slots=True)
class DonorParameters:
    """Hold everything random about copying from a donor.

    Attributes:
        index: Which donor.
        scale: The donor is resized to fit into the target's size times this.
        flip: Mirror it.
        offset_xy: Place of the resized donor, each in [0, 1]: 0 puts the left or top edges
            together, 1 the right or bottom ones.
        selection_seed: Decides which of its instances are copied, once their number is known.
    """

    index: int
    scale: float
    flip: bool
    offset_xy: tuple[float, float]
    selection_seed: int


def donor_cutouts(
    donor: AnnotatedImage,
    parameters: DonorParameters,
    *,
    image_hw: tuple[int, int],
    max_instances: int,
) -> list[Cutout]:
    """Resize, mirror and place a donor, and cut a random subset of its instances out.

    The size of the subset is uniform from 0 to the number of instances, at most `max_instances`.
    Instances that fall outside the target, or vanish when shrunk, are not among the cutouts.

    Raises:
        ValueError: The donor has boxes only.
    """
    if donor.boxes_only:
        raise ValueError(
            "a donor has boxes only; instances are copied by mask: give donors with masks, or "
            "paste from a pool (`source='pool'`)"
        )
    rng = np.random.default_rng(parameters.selection_seed)
    n = min(int(rng.integers(len(donor) + 1)), max_instances)
    selected = rng.choice(len(donor), size=n, replace=False).tolist() if n else []
    height, width = donor.image_hw
    zoom = parameters.scale * min(image_hw[0] / height, image_hw[1] / width)
    new_height, new_width = max(round(height * zoom), 1), max(round(width * zoom), 1)
    rgb = _reshaped(donor.image, new_width, new_height, parameters.flip) if n else donor.image
    top, left = (
        round(share * (room - side))
        for share, room, side in zip(
            parameters.offset_xy[::-1], image_hw, (new_height, new_width), strict=True
        )
    )
    cutouts = []
    for i in selected:
        alpha = _reshaped(
            donor.masks[i].view(np.uint8) * np.uint8(255), new_width, new_height, parameters.flip
        )
        x, y, box_width, box_height = cv2.boundingRect(alpha)
        window = slice(y, y + box_height), slice(x, x + box_width)
        rgba = np.dstack([rgb[window], alpha[window]])
        cutout = place(
            rgba,
            128,
            left_px=left + x,
            top_px=top + y,
            image_hw=image_hw,
            category_id=int(donor.category_ids[i]),
            instance_id=str(donor.instance_ids[i]),
            origin="self",
        )
        if cutout is not None:
            cutouts.append(cutout)
    return cutouts


def _reshaped(image: ByteArray, width_px: int, height_px: int, flip: bool) -> ByteArray:
    resized = shrink_or_enlarge(image, width_px, height_px)
    return np.asarray(cv2.flip(resized, 1), dtype=np.uint8) if flip else resized


def _is_copied(annotation: Mapping[str, Any]) -> bool:
    """Leave out crowds: their masks are no single object's."""
    return has_segmentation(annotation) and not annotation.get("iscrowd")


def _renamed(image: AnnotatedImage, names: Sequence[str]) -> AnnotatedImage:
    return AnnotatedImage(
        image.image,
        image.masks,
        image.category_ids,
        boxes_xyxy=image.boxes_xyxy,
        instance_ids=names,
        origins=image.origins,
    )
