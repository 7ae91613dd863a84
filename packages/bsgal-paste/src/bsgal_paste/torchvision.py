"""Copy-paste as a `torchvision.transforms.v2` transform; needs the extra `[torchvision]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# torchvision has no type information.
from torchvision import tv_tensors  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from bsgal_paste._annotated_image import AnnotatedImage, has_area_inside
from bsgal_paste._apply import PasteResult
from bsgal_paste._copy_paste import CopyPaste, sample_rng

# Values of a target that hold one entry per instance, and those that do not.
_INSTANCE_KEYS = {"boxes", "masks", "labels", "area", "iscrowd", "instance_ids"}
_IMAGE_KEYS = {"image_id", "size", "orig_size", "height", "width", "file_name", "instance_names"}


def instance_values(sample: Any) -> tuple[torch.Tensor, ...]:
    """Give what must stay in step with the boxes, for `SanitizeBoundingBoxes`.

    Its default keeps labels and masks in step and leaves the rest as long as it was. After a
    `CopyPasteTransform` use `v2.SanitizeBoundingBoxes(labels_getter=instance_values)`.

    Args:
        sample: `(image, target)`, or a target.

    Returns:
        Those of the target's labels, areas, crowd marks and instance ids that are tensors `(N,)`.
    """
    target = sample[1] if isinstance(sample, tuple | list) else sample
    values = (target.get(key) for key in ("labels", "area", "iscrowd", "instance_ids"))
    return tuple(value for value in values if isinstance(value, torch.Tensor))


def pool_ids(target: Mapping[str, Any]) -> list[str | None]:
    """Give the pool's instance id of each box of a target, None for a real object.

    Raises:
        ValueError: The target has fewer or more ids than boxes, because something filtered the
            boxes alone.
    """
    indices = target["instance_ids"].tolist()
    if len(indices) != len(target["boxes"]):
        raise ValueError(
            f"the target has {len(indices)} `instance_ids` for {len(target['boxes'])} boxes; give "
            "`SanitizeBoundingBoxes` the argument `labels_getter=instance_values`"
        )
    return [None if index < 0 else target["instance_names"][index] for index in indices]


class CopyPasteTransform(v2.Transform):  # type: ignore[misc]
    """Paste instances into an image and its target, with the result of the NumPy core.

    The sample of image i in epoch e is `paste(target, sample_rng(seed, e, i))`, byte for byte,
    in whatever loader process. Put it before scaling to float and, where objects should keep their
    size, after resizing and cropping. Instances without a visible pixel are left out, as crops
    leave them.

    Takes `(image, target)`. `image` is a uint8 tensor `(3, H, W)`; `target` a dictionary with
    `boxes` (`tv_tensors.BoundingBoxes`), `labels` (category ids of the annotations `(N,)`), mostly
    `masks` (`tv_tensors.Mask`, `(N, H, W)`), and `image_id`. Without `masks` the boxes are taken
    for the objects. Gives `(image, target)` of the same kinds, boxes in the format they came in;
    `area` (visible pixels) and `iscrowd` (0 for pasted ones) are kept in step if they are there.
    `instance_ids`, int64 `(N,)`, says where each instance comes from: -1 for a real one, else its
    place in `instance_names`, the pool's ids. `pool_ids` puts the two together. For crops behind
    this transform see `instance_values`.

    Args:
        paste: What to paste and how.
        seed: Of everything random, at least 0.
        keep_original: Whether the target also gets `original`: the pair that came in.
        image_keys: Further keys of the target that do not hold one entry per instance.
    """

    def __init__(
        self,
        paste: CopyPaste,
        *,
        seed: int,
        keep_original: bool = False,
        image_keys: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed}")
        self.paste = paste
        self.seed = seed
        self.keep_original = keep_original
        self._image_keys = _IMAGE_KEYS | set(image_keys)
        # Shared: workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from now on, in loader workers that are running too.

        Where the sampler is infinite, call it with any integer that grows now and then, such as the
        step divided by the steps that see each image once. Samples that workers have fetched ahead
        still have the one before.
        """
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def forward(self, image: torch.Tensor, target: dict[str, Any]) -> Any:
        """Paste into one image.

        Raises:
            TypeError: The image is no uint8 tensor, or the boxes are no `BoundingBoxes`.
            ValueError: The target lacks something, or holds something per instance that this
                transform does not know how to keep in step.
        """
        self._check(image, target)
        annotated, used = _annotated(image, target)
        rng = sample_rng(self.seed, int(self._epoch), int(target["image_id"]))
        result = self.paste(annotated, rng)
        pasted = _pasted_target(target, result, used)
        if self.keep_original:
            pasted["original"] = (image, target)
        pixels = torch.from_numpy(np.ascontiguousarray(result.image.transpose(2, 0, 1)))
        if isinstance(image, tv_tensors.Image):
            pixels = tv_tensors.wrap(pixels, like=image)
        return pixels, pasted

    def _check(self, image: object, target: dict[str, Any]) -> None:
        if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
            raise TypeError(
                "`image` must be a uint8 tensor (3, H, W); put `v2.ToImage()` before this "
                "transform and `v2.ToDtype` after it"
            )
        missing = [key for key in ("boxes", "labels", "image_id") if key not in target]
        if missing:
            raise ValueError(
                f"the target lacks {missing}; `wrap_dataset_for_transforms_v2` of torchvision "
                "gives boxes, labels and masks, and `image_id` is what the sample is seeded with"
            )
        if not isinstance(target["boxes"], tv_tensors.BoundingBoxes):
            raise TypeError("`target['boxes']` must be a `tv_tensors.BoundingBoxes`")
        n = len(target["boxes"])
        for key, value in target.items():
            if key in _INSTANCE_KEYS:
                if len(value) != n:
                    raise ValueError(f"`target[{key!r}]` has {len(value)} entries for {n} boxes")
            elif key not in self._image_keys and (
                isinstance(value, torch.Tensor) and value.ndim and len(value) == n
            ):
                raise ValueError(
                    f"`target[{key!r}]` has one entry per instance, and pasted instances have "
                    "none; remove it before this transform, or name it in `image_keys` if it "
                    "belongs to the image"
                )


def _annotated(
    image: torch.Tensor, target: dict[str, Any]
) -> tuple[AnnotatedImage, npt.NDArray[np.int64]]:
    """Give the image with those of its instances that have a pixel, and which they are."""
    pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
    boxes = v2.functional.convert_bounding_box_format(
        target["boxes"], new_format=tv_tensors.BoundingBoxFormat.XYXY
    )
    boxes_xyxy = boxes.cpu().numpy().astype(np.float64)
    labels = target["labels"].cpu().numpy()
    if "masks" not in target:
        used = np.flatnonzero(has_area_inside(boxes_xyxy, pixels.shape[:2]))
        return AnnotatedImage.from_boxes(pixels, boxes_xyxy[used], labels[used]), used
    masks = target["masks"].cpu().numpy().astype(bool)
    used = np.flatnonzero(masks.any(axis=(1, 2)))
    ids = pool_ids(target) if "instance_ids" in target else [None] * len(labels)
    annotated = AnnotatedImage(
        pixels,
        masks[used],
        labels[used],
        boxes_xyxy=boxes_xyxy[used],
        instance_ids=[ids[i] for i in used.tolist()],
    )
    return annotated, used


def _pasted_target(
    target: dict[str, Any], result: PasteResult, used: npt.NDArray[np.int64]
) -> dict[str, Any]:
    old_boxes = target["boxes"]
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(result.boxes_xyxy).to(torch.float64),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=result.image.shape[:2],
    )
    boxes = v2.functional.convert_bounding_box_format(boxes, new_format=old_boxes.format)
    pasted = dict(target)
    pasted["boxes"] = tv_tensors.wrap(boxes.to(old_boxes.dtype), like=old_boxes)
    pasted["labels"] = torch.from_numpy(result.category_ids).to(target["labels"].dtype)
    names = [name for name in result.instance_ids if name is not None]
    indices = torch.full((len(result),), -1)
    indices[torch.tensor([name is not None for name in result.instance_ids])] = torch.arange(
        len(names)
    )
    pasted["instance_ids"], pasted["instance_names"] = indices, names
    if "masks" in target:
        masks = torch.from_numpy(result.masks).to(target["masks"].dtype)
        pasted["masks"] = tv_tensors.Mask(masks)
    if "area" in target:
        pasted["area"] = torch.from_numpy(result.areas).to(torch.as_tensor(target["area"]).dtype)
    if "iscrowd" in target:
        old = torch.as_tensor(target["iscrowd"])
        crowds = torch.zeros(len(result), dtype=old.dtype)
        real = torch.from_numpy(~result.is_pasted)
        crowds[real] = old[torch.from_numpy(used[result.source_index[~result.is_pasted]])]
        pasted["iscrowd"] = crowds
    return pasted
