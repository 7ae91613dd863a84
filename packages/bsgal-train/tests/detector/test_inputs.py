from __future__ import annotations

from dataclasses import replace

import torch

from bsgal_train.data import LabelledImage
from bsgal_train.detector import detector_inputs
from bsgal_train.detector.row_losses import object_source


def test_every_field_comes_over_without_a_copy(tiny_inputs: list[LabelledImage]) -> None:
    images = [replace(tiny_inputs[0], source=torch.tensor([-1, 0])), tiny_inputs[1]]

    for image, given in zip(images, detector_inputs(images), strict=True):
        assert (given["image_id"], given["file_name"]) == (image.image_id, image.file_name)
        assert given["image"] is image.image
        instances = given["instances"]
        assert instances.image_size == image.image_hw == tuple(image.image.shape[1:])
        assert len(instances) == len(image) > 0
        for found, expected in (
            (instances.gt_boxes.tensor, image.boxes_xyxy),
            (instances.gt_masks.tensor, image.masks),
            (instances.gt_classes, image.class_indices),
            (instances.gt_source, image.source),
        ):
            assert found.data_ptr() == expected.data_ptr()
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_image_without_objects_comes_over(tiny_inputs: list[LabelledImage]) -> None:
    (given,) = detector_inputs([tiny_inputs[0].only(slice(0))])

    assert len(given["instances"]) == 0
    assert given["instances"].gt_masks.image_size == tiny_inputs[0].image_hw


def test_objects_are_real_where_the_input_does_not_tell(tiny_inputs: list[LabelledImage]) -> None:
    (given,) = detector_inputs([replace(tiny_inputs[0], source=torch.tensor([1, -1]))])
    assert object_source(given["instances"]).tolist() == [1, -1]

    given["instances"].remove("gt_source")
    assert object_source(given["instances"]).tolist() == [-1, -1]
