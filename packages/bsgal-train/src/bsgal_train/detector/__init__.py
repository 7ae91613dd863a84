"""Mask R-CNN and CenterNet2 from detectron2's registries with timm backbones.

What selection needs to know of a detector is in `row_losses`: every head reports its losses row by
row, with the object that each row stands for and the modules that see just these rows.
"""

# ruff: noqa: E402 - detectron2 must be made importable before anything below imports it.

from bsgal_train.machine.detectron2_shims import ensure_detectron2

ensure_detectron2()

from bsgal_train.detector.backbone_weights import load_backbone_weights
from bsgal_train.detector.build import (
    autocast,
    best_device,
    build_detector,
    training_losses,
)
from bsgal_train.detector.inputs import detector_inputs
from bsgal_train.detector.sampling import sampling
from bsgal_train.detector.weights import load_weights, save_detector

__all__ = [
    "autocast",
    "best_device",
    "build_detector",
    "detector_inputs",
    "load_backbone_weights",
    "load_weights",
    "sampling",
    "save_detector",
    "training_losses",
]
