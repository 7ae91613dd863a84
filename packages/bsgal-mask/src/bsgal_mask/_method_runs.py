"""Running every method on a batch, so that a failure costs the one image that it is about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bsgal_mask._own_alpha import AlphaSegmenter
from bsgal_mask._segmenter import Image, Segmenter, SoftMask, without_alpha
from bsgal_mask.errors import SegmentationError

_LOGGER = logging.getLogger(__name__)
METHOD, NON_FINITE = "method", "non-finite"
"""Reason codes of images on which a method failed, or gave no numbers."""

_MAX_IN_A_ROW = 10
_MAX_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    cause: Exception | None = None


class MethodRuns:
    """Run the methods of a pool.

    A method may be anyone's, and may fail in any way: by raising, or by returning what is no mask.
    The image is then dropped with the reason, unless the method has failed on so many images in a
    row that the fault is hardly theirs.

    Args:
        methods: The methods, in order.
    """

    def __init__(self, methods: Sequence[Segmenter]) -> None:
        self._methods = methods
        self._n_failed_in_a_row = dict.fromkeys([method.name for method in methods], 0)

    def segment(
        self, images: Mapping[str, Image], category_names: Mapping[str, str]
    ) -> tuple[dict[str, list[SoftMask]], dict[str, str]]:
        """Run all methods on some images; those after the one that failed do without the image.

        Args:
            images: uint8 arrays, RGB (H, W, 3) or RGBA (H, W, 4), by sample id.
            category_names: What each should show, by sample id.

        Returns:
            The masks of each image in the order of the methods, float32 (H, W) in [0, 1]; and why
            an image has none, as `code: detail`. Every image is in one of the two.

        Raises:
            SegmentationError: A method failed on ten images in a row.
        """
        masks: dict[str, list[SoftMask]] = {sample_id: [] for sample_id in images}
        reasons: dict[str, str] = {}
        for method in self._methods:
            usable = {sample_id: images[sample_id] for sample_id in masks}
            for sample_id, found in _run(method, usable, category_names).items():
                self._count(method.name, found)
                if isinstance(found, _Failure):
                    reasons[sample_id] = found.reason
                    del masks[sample_id]
                else:
                    masks[sample_id].append(found)
        return masks, reasons

    def _count(self, name: str, found: SoftMask | _Failure) -> None:
        if not isinstance(found, _Failure):
            self._n_failed_in_a_row[name] = 0
            return
        self._n_failed_in_a_row[name] += 1
        if self._n_failed_in_a_row[name] == _MAX_IN_A_ROW:
            raise SegmentationError(
                f"the method {name!r} failed on {_MAX_IN_A_ROW} images in a row, on the last with "
                f"{found.reason!r}; mend it, then run the same again: these images are tried anew"
            ) from found.cause


def _run(
    method: Segmenter, images: Mapping[str, Image], category_names: Mapping[str, str]
) -> dict[str, SoftMask | _Failure]:
    """Return one method's mask of each image, or why there is none."""
    if not images:
        return {}
    try:
        masks = _called(method, images, category_names)
    except MemoryError:
        raise
    # No list of exceptions holds what the libraries of anyone's method raise; none is lost here.
    except Exception as error:
        _LOGGER.debug("method %s failed on %s", method.name, [*images], exc_info=True)
        if len(images) == 1:
            reason = f"{METHOD}: {method.name} failed ({_described(error)})"
            return {sample_id: _Failure(reason, error) for sample_id in images}
        found: dict[str, SoftMask | _Failure] = {}
        for sample_id, image in images.items():
            found |= _run(method, {sample_id: image}, category_names)
        return found
    return {
        sample_id: _checked(method.name, mask, image)
        for (sample_id, image), mask in zip(images.items(), masks, strict=True)
    }


def _called(
    method: Segmenter, images: Mapping[str, Image], category_names: Mapping[str, str]
) -> list[SoftMask]:
    pictures = [*images.values()]
    if not isinstance(method, AlphaSegmenter):
        pictures = [without_alpha(picture) for picture in pictures]
    answer = method.segment(pictures, [category_names[key] for key in images])
    masks = [] if answer is None else list(answer)
    if len(masks) != len(images):
        raise SegmentationError(
            f"it must return one mask per image, got {len(masks)} for {len(images)}"
        )
    return masks


def _checked(name: str, mask: SoftMask, image: Image) -> SoftMask | _Failure:
    """Return a mask that is one."""
    required = f"float32 of shape {image.shape[:2]} in [0, 1]"
    if not isinstance(mask, np.ndarray):
        got = type(mask).__name__
    elif mask.dtype != np.float32 or mask.shape != image.shape[:2]:
        got = f"{mask.dtype} {mask.shape}"
    elif not np.isfinite(mask).all():
        return _Failure(f"{NON_FINITE}: {name} gave no numbers")
    elif mask.min() < 0 or mask.max() > 1:
        got = f"values from {mask.min():g} to {mask.max():g}"
    else:
        return mask
    return _Failure(f"{METHOD}: {name} must return masks of {required}, got {got}")


def _described(error: Exception) -> str:
    """Return an error as one short line that any file can hold."""
    name = "" if isinstance(error, SegmentationError) else type(error).__name__
    detail = str(error).encode(errors="replace").decode()
    line = " ".join(": ".join(part for part in (name, detail) if part).split())
    return line if len(line) <= _MAX_REASON_LENGTH else f"{line[:_MAX_REASON_LENGTH]} ..."
