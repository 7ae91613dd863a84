"""Masks from Segment Anything through transformers, prompted without a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bsgal_mask._checkpoint import resized_logits, sigmoid
from bsgal_mask._pretrained import Pretrained
from bsgal_mask._segmenter import Image, Segmenter, SoftMask, check_images

if TYPE_CHECKING:
    import torch

Prompt: TypeAlias = NDArray[np.float32]
# SAM answers with three masks: a part, a larger part, the whole.
_WHOLE = 2


class Sam(Pretrained):
    """A SAM (Kirillov et al., ICCV 2023) for one or more methods to share.

    Its arguments are those of `Pretrained`; a small one is `"facebook/sam-vit-base"`.
    """

    model_class = "SamModel"
    extra = "sam"
    has_text = False
    default_batch_size = 2

    def masks_at_points(
        self, images: Sequence[Image], points_xy: Sequence[Prompt]
    ) -> Iterator[SoftMask]:
        """Yield the largest of the three masks that each image's points mean.

        Args:
            images: uint8 RGB arrays (H, W, 3).
            points_xy: Per image, points (P, 2) in its pixels, all on what is wanted; P is the same
                for all.

        Yields:
            float32 (H, W) in [0, 1].
        """

        def prompt(points: torch.Tensor) -> dict[str, Any]:
            return {"input_points": points[:, None], "multimask_output": True}

        yield from self._masks(images, points_xy, prompt, _WHOLE)

    def masks_in_boxes(
        self, images: Sequence[Image], boxes_xyxy: Sequence[Prompt]
    ) -> Iterator[SoftMask]:
        """Yield the one mask that each image's box means.

        Args:
            images: uint8 RGB arrays (H, W, 3).
            boxes_xyxy: Per image, one box (4,) in its pixels.

        Yields:
            float32 (H, W) in [0, 1].
        """

        def prompt(corners: torch.Tensor) -> dict[str, Any]:
            return {"input_boxes": corners.reshape(-1, 1, 4), "multimask_output": False}

        yield from self._masks(images, [box.reshape(2, 2) for box in boxes_xyxy], prompt, 0)

    def _masks(
        self,
        images: Sequence[Image],
        points_xy: Sequence[Prompt],
        prompt: Callable[[torch.Tensor], dict[str, Any]],
        index: int,
    ) -> Iterator[SoftMask]:
        """Yield mask `index` of each image, prompted by points (P, 2) in its own pixels."""
        import torch

        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            with self._checkpoint.running():
                pixels, notes = self._checkpoint.pixel_values(chunk)
                # (height, width) that each image has within the padded square.
                inner_hw = [tuple(map(int, hw)) for hw in notes["reshaped_input_sizes"]]
                scaled = [
                    points * np.array([inner[1], inner[0]]) / (image.shape[1], image.shape[0])
                    for points, inner, image in zip(
                        points_xy[start : start + self.batch_size], inner_hw, chunk, strict=True
                    )
                ]
                points = torch.from_numpy(np.stack(scaled)).to(pixels.device, torch.float32)
                predicted = self._checkpoint.model(pixel_values=pixels, **prompt(points))
                maps = predicted.pred_masks[:, 0, index].float().cpu()
                padded_hw = pixels.shape[-2:]
                masks = [
                    _soft_mask(single, padded_hw, inner, image.shape[:2])
                    for single, inner, image in zip(maps, inner_hw, chunk, strict=True)
                ]
            yield from masks


class SamBackgroundSegmenter:
    """Ask SAM for what lies in the four corners, and take everything else for the object.

    DiverGen's way, for prompts that ask for a plain background: one positive point near each
    corner, the largest of the three masks, inverted.

    Args:
        sam: The model.
        corner_margin_frac: How far from its corner a point lies, as a share of each side.
        name: The method's name in the manifest.

    Raises:
        ValueError: `corner_margin_frac` is outside [0, 0.5).
    """

    def __init__(
        self, sam: Sam, *, corner_margin_frac: float = 0.01, name: str = "sam_background"
    ) -> None:
        if not 0 <= corner_margin_frac < 0.5:
            raise ValueError(f"`corner_margin_frac` must lie in [0, 0.5), got {corner_margin_frac}")
        self.name = name
        self._sam = sam
        self._corner_margin_frac = corner_margin_frac

    def config(self) -> Mapping[str, Any]:
        """Return what decides the masks."""
        return {**self._sam.config(), "corner_margin_frac": self._corner_margin_frac}

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """See `Segmenter.segment`; the names are ignored."""
        check_images(images, category_names)
        points = [corners_xy(image.shape[:2], self._corner_margin_frac) for image in images]
        return [1 - mask for mask in self._sam.masks_at_points(images, points)]


class SamBoxSegmenter:
    """Have SAM draw the outline inside the box that another method found.

    Args:
        sam: The model.
        boxes_from: The method whose mask, at least 0.5, has the box. It runs anew for this.
        margin_frac: By how much each side of the box is moved outwards, as a share of its length.
        name: The method's name in the manifest.

    Raises:
        ValueError: `margin_frac` is negative.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        boxes_from: Segmenter,
        margin_frac: float = 0.02,
        name: str = "sam_box",
    ) -> None:
        if margin_frac < 0:
            raise ValueError(f"`margin_frac` must not be negative, got {margin_frac}")
        self.name = name
        self._sam = sam
        self._boxes_from = boxes_from
        self._margin_frac = margin_frac

    def config(self) -> Mapping[str, Any]:
        """Return what decides the masks, the other method's settings included."""
        source = {"name": self._boxes_from.name, **self._boxes_from.config()}
        return {
            **self._sam.config(),
            "boxes_from": source,
            "margin_frac": self._margin_frac,
        }

    def segment(self, images: Sequence[Image], category_names: Sequence[str]) -> list[SoftMask]:
        """See `Segmenter.segment`; zero where the other method found nothing."""
        check_images(images, category_names)
        coarse = self._boxes_from.segment(images, category_names)
        boxes = [box_xyxy(mask, self._margin_frac) for mask in coarse]
        found = self._sam.masks_in_boxes(
            [image for image, box in zip(images, boxes, strict=True) if box is not None],
            [box for box in boxes if box is not None],
        )
        return [
            np.zeros(image.shape[:2], np.float32) if box is None else next(found)
            for image, box in zip(images, boxes, strict=True)
        ]


def corners_xy(image_hw: tuple[int, int], margin_frac: float) -> Prompt:
    """Return the points (4, 2), in pixels, a margin away from an image's corners."""
    last_x, last_y = image_hw[1] - 1, image_hw[0] - 1
    near_x, near_y = margin_frac * last_x, margin_frac * last_y
    far_x, far_y = last_x - near_x, last_y - near_y
    points = [(near_x, near_y), (far_x, near_y), (near_x, far_y), (far_x, far_y)]
    return np.array(points, np.float32)


def box_xyxy(mask: SoftMask, margin_frac: float) -> Prompt | None:
    """Return the box (4,) around a mask's pixels of at least 0.5, widened, inside the image."""
    found = mask >= 0.5
    if not found.any():
        return None
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    start = np.array([columns[0], rows[0]], np.float32)
    end = np.array([columns[-1] + 1, rows[-1] + 1], np.float32)
    margin = margin_frac * (end - start)
    resolution_wh = np.array(mask.shape[::-1], np.float32)
    box = np.concatenate([np.maximum(start - margin, 0), np.minimum(end + margin, resolution_wh)])
    return np.asarray(box, np.float32)


def _soft_mask(
    logits: torch.Tensor,
    padded_hw: Sequence[int],
    inner_hw: Sequence[int],
    image_hw: tuple[int, int],
) -> SoftMask:
    """Cut the padding off a map (h, w) and return it at the image's size, in [0, 1]."""
    from torch.nn.functional import interpolate

    padded = interpolate(logits[None, None], size=tuple(padded_hw), mode="bilinear")[0, 0]
    return sigmoid(resized_logits(padded[: inner_hw[0], : inner_hw[1]], image_hw))
