"""Mask R-CNN from detectron2's registry with a small timm backbone."""

# ruff: noqa: E402 - detectron2 must be made importable before anything below imports it.

from bsgal_train.detectron2_setup import ensure_detectron2

ensure_detectron2()

from bsgal_train.detector.build import autocast, build_detector, training_losses
from bsgal_train.detector.sampling import sampling
from bsgal_train.detector.weights import load_weights, save_detector

__all__ = [
    "autocast",
    "build_detector",
    "load_weights",
    "sampling",
    "save_detector",
    "training_losses",
]
