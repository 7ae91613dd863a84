"""Pre-trained backbone weights, from a file or from the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict_from_hf
from torch import Tensor

from bsgal_train.detector.weights import DetectorWeightsError

__all__ = ["load_backbone_weights"]

logger = logging.getLogger(__name__)

_HUB = "hub:"

# What checkpoints of whole training runs wrap the weights in.
_WRAPPERS = ("state_dict", "model", "model_state")
_PREFIX = "module."


def load_backbone_weights(detector: Any, source: str) -> None:
    """Copy weights of a whole timm model into a detector's backbone; its classifier is left out.

    Args:
        detector: from `build_detector`; changed in place.
        source: a .safetensors file; a .pth, .pt or .bin file that holds tensors (nothing else in
            it is unpickled); or `hub:` and the repository of a timm model, which is fetched.

    Raises:
        DetectorWeightsError: There are no such weights, or they are of another model.
        OSError: The hub cannot be reached.
    """
    weights = _from_hub(source.removeprefix(_HUB)) if source.startswith(_HUB) else _read(source)
    try:
        detector.backbone.bottom_up.load_pretrained(weights)
    except (RuntimeError, KeyError) as error:
        text = str(error)
        short = text if len(text) < 600 else f"{text[:600]} ..."
        raise DetectorWeightsError(
            f"{source} does not fit detector.backbone: {short}; it must hold the weights of that "
            "timm model"
        ) from error
    logger.info("started the backbone from %d tensors of %s", len(weights), source)


def _from_hub(repository: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_state_dict_from_hf(repository, weights_only=True)
    return weights


def _read(source: str) -> dict[str, Tensor]:
    path = Path(source)
    try:
        if path.suffix == ".safetensors":
            stored: Any = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DetectorWeightsError(
            f"no backbone weights at {path}; set detector.backbone_weights to a .safetensors or "
            ".pth file, or to `hub:` and a timm model's name on the Hugging Face hub"
        ) from None
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise DetectorWeightsError(
            f"the backbone weights in {path} cannot be read, or hold more than tensors: {error}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    if not isinstance(stored, dict) or not all(
        isinstance(value, Tensor) for value in stored.values()
    ):
        raise DetectorWeightsError(f"{path} holds no state dict of tensors")
    return {name.removeprefix(_PREFIX): value for name, value in stored.items()}
