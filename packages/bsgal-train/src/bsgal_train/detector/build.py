"""Build the detector of a recipe, and run its training losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

# Imported for their entries in detectron2's registries.
import bsgal_train.detector.backbone
import bsgal_train.detector.cascade
import bsgal_train.detector.centernet
import bsgal_train.detector.rpn  # noqa: F401
from bsgal_train.data.samples import LabelledImage
from bsgal_train.detector.configs import detectron2_config
from bsgal_train.detector.federated import FederatedClasses
from bsgal_train.detector.heads import SigmoidOutputLayers
from bsgal_train.detector.inputs import detector_inputs
from bsgal_train.detector.sampling import sampling
from bsgal_train.recipe import DetectorConfig, Precision

__all__ = ["autocast", "best_device", "build_detector", "training_losses"]


def build_detector(
    config: DetectorConfig, n_classes: int, image_counts: Sequence[int] | None = None
) -> nn.Module:
    """Build a Mask R-CNN or a CenterNet2 with random weights on the CPU, in training mode.

    Weights are drawn from torch's global generator, as all of torch's initialisers do; callers
    fork and seed it.

    Args:
        config: the `detector` part of a recipe.
        n_classes: number of foreground classes, at least 1.
        image_counts: training images of each class. A federated loss draws classes by them;
            without, all classes take part, which only matters in training.

    Returns:
        A detectron2 `GeneralizedRCNN` that takes and returns detectron2's input and output
        dictionaries; images are RGB uint8 (3, H, W).
    """
    if n_classes < 1:
        raise ValueError(f"`n_classes` must be at least 1, got {n_classes}")
    if image_counts is not None and len(image_counts) != n_classes:
        raise ValueError(
            f"`image_counts` must have one number for each of {n_classes} classes, got "
            f"{len(image_counts)}"
        )
    detector: Any = build_model(detectron2_config(config, n_classes))
    if config.federated_classes and image_counts is not None:
        federated = FederatedClasses(image_counts, config.federated_classes)
        for module in detector.roi_heads.modules():
            if isinstance(module, SigmoidOutputLayers):
                module.federated = federated
    assert isinstance(detector, nn.Module)
    return detector


def best_device() -> torch.device:
    """Return the GPU of this process if torch can use one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def autocast(precision: Precision) -> Iterator[None]:
    """Run the detector's layers at the recipe's precision, on whatever device it is."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    enabled = precision != "fp32"
    with ExitStack() as stack:
        for device in {"cpu", best_device().type}:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        yield


def training_losses(
    detector: nn.Module,
    images: Sequence[LabelledImage],
    precision: Precision,
    seed: int,
    image_keys: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return the detector's named losses on a batch; their sum is what a step minimises.

    Args:
        detector: in training mode.
        images: the batch.
        precision: of convolutions and linear layers.
        seed: decides which anchors and proposals are sampled.
        image_keys: one number per image, see `sampling`.
    """
    with sampling(seed, image_keys), autocast(precision):
        losses: dict[str, Tensor] = detector(detector_inputs(images))
    return losses
