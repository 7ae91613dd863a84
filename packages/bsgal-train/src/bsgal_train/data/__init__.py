"""From annotated images and an instance pool to what the detector is trained and tested on."""

from __future__ import annotations

from bsgal_train.data.class_matched import ClassMatchedReference
from bsgal_train.data.crop import CropWindow, RandomCrop
from bsgal_train.data.draw_policy import DrawPolicy, weights_from_evidence
from bsgal_train.data.draw_table import DrawTable
from bsgal_train.data.loaders import (
    TestLoader,
    TrainLoader,
    build_test_loader,
    build_train_loader,
)
from bsgal_train.data.mapper import TrainingMapper
from bsgal_train.data.reference import DrawnAhead, ReferenceDraws
from bsgal_train.data.sampler import RepeatFactorSampler, compute_repeat_factors
from bsgal_train.data.samples import (
    NOT_ANNOTATED,
    REAL,
    LabelledImage,
    PastedInstance,
    ReferenceImage,
    TrainingSample,
)

__all__ = [
    "NOT_ANNOTATED",
    "REAL",
    "ClassMatchedReference",
    "CropWindow",
    "DrawPolicy",
    "DrawTable",
    "DrawnAhead",
    "LabelledImage",
    "PastedInstance",
    "RandomCrop",
    "ReferenceDraws",
    "ReferenceImage",
    "RepeatFactorSampler",
    "TestLoader",
    "TrainLoader",
    "TrainingMapper",
    "TrainingSample",
    "build_test_loader",
    "build_train_loader",
    "compute_repeat_factors",
    "weights_from_evidence",
]
