"""Check predictions before they are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsgal_train.evaluation.ground_truth import GroundTruth
from bsgal_train.evaluation.protocol import Prediction

__all__ = ["check_predictions"]

_FIELD_OF_IOU_TYPE = {"bbox": "bbox", "segm": "segmentation"}


def check_predictions(
    predictions: Sequence[Prediction], truth: GroundTruth, iou_types: Sequence[str]
) -> None:
    """Raise for the first prediction that cannot be scored.

    Raises:
        ValueError: A field is missing; the image or category is not in the annotation file; the
            score or the box is not finite, or the box has a negative side; the mask is not a
            run-length encoding of the image's size.
    """
    fields = ["image_id", "category_id", "score"]
    fields += [_FIELD_OF_IOU_TYPE[iou_type] for iou_type in iou_types]
    for position, prediction in enumerate(predictions):
        where = f"predictions[{position}]"
        missing = [field for field in fields if field not in prediction]
        if missing:
            raise ValueError(f"{where} has no {', '.join(missing)}; it has {sorted(prediction)}")
        for field, known in (("image_id", truth.images), ("category_id", truth.categories)):
            if prediction[field] not in known:
                raise ValueError(
                    f"{where} has {field} {prediction[field]!r}, which is not in the annotation "
                    "file; were the predictions made on other data, or are class indices used "
                    "where category ids belong?"
                )
        if not math.isfinite(prediction["score"]):
            raise ValueError(f"{where} has the score {prediction['score']}; it must be finite")
        if "bbox" in iou_types:
            _check_box(prediction, where)
        if "segm" in iou_types:
            _check_mask(prediction, truth, where)


def _check_box(prediction: Prediction, where: str) -> None:
    box = prediction["bbox"]
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where} has the bbox {list(box)}; it must be [x, y, width, height] in pixels, finite "
            "and with sides of at least 0"
        )


def _check_mask(prediction: Prediction, truth: GroundTruth, where: str) -> None:
    mask = prediction["segmentation"]
    if not isinstance(mask, dict) or "counts" not in mask:
        raise ValueError(
            f"{where} has a segmentation that is no run-length encoding; encode the mask with "
            "pycocotools.mask.encode"
        )
    image = truth.images[prediction["image_id"]]
    if list(mask["size"]) != [image["height"], image["width"]]:
        raise ValueError(
            f"{where} has a mask of {list(mask['size'])} pixels (height, width), but image "
            f"{image['id']} has {[image['height'], image['width']]}"
        )
