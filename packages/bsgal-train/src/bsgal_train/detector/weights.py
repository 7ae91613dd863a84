"""A detector on disk: `detector.safetensors` and what it detects in `detector.json`."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from bsgal_train.recipe import DetectorConfig
from bsgal_train.run_folder.layout import RunFolder, write_json, written_whole

__all__ = ["SCHEMA", "DetectorWeightsError", "load_weights", "save_detector"]

logger = logging.getLogger(__name__)

SCHEMA = "bsgal.detector/1"

# Layers with one row per class; everything else is shared between classes.
_CLASS_LAYER = re.compile(r"roi_heads\.(box_predictor\.(\d+\.)?cls_score|mask_head\.predictor)\.")


class DetectorWeightsError(ValueError):
    """Stored weights are missing, unreadable, or of another detector."""


def save_detector(
    folder: Path,
    detector: nn.Module,
    config: DetectorConfig,
    category_names: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a detector's weights and description into `folder`, each file atomically.

    Args:
        folder: made if missing.
        detector: as `build_detector` returns it.
        config: what it was built from.
        category_names: in the order of its class indices.
        dtype: of the stored weights; float16 halves the file.
        notes: anything worth keeping beside it, fit for JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to(dtype).contiguous() for name, value in detector.state_dict().items()
    }
    written = RunFolder(folder)
    with written_whole(written.detector) as temporary:
        temporary.write_bytes(save(tensors))
    description = {
        "schema": SCHEMA,
        "detector": dataclasses.asdict(config),
        "category_names": list(category_names),
        "n_parameters": sum(p.numel() for p in detector.parameters()),
        "notes": notes or {},
    }
    write_json(written.detector_description, description, indent=2)


def load_weights(
    detector: nn.Module, source: str, category_names: Sequence[str]
) -> tuple[str, ...]:
    """Copy stored weights into a freshly built detector.

    Layers with one row per class are copied only if the stored detector knows the same
    categories in the same order; otherwise they keep their random weights.

    Args:
        detector: changed in place.
        source: `baseline` for the detector shipped with the package, or a folder that
            `save_detector` wrote.
        category_names: in the order of the detector's class indices.

    Returns:
        Names of the parameters that were not loaded.

    Raises:
        DetectorWeightsError: if there are no such weights, or they are of another shape.
    """
    folder = Path(str(files("bsgal_train") / "baseline")) if source == "baseline" else Path(source)
    description, tensors = _read(folder)
    same_categories = description["category_names"] == list(category_names)
    own = detector.state_dict()
    fresh = tuple(
        name
        for name in own
        if _CLASS_LAYER.match(name) and not (same_categories or _is_class_agnostic(name, own[name]))
    )
    expected = {name: tuple(value.shape) for name, value in own.items() if name not in fresh}
    stored = {name: tuple(value.shape) for name, value in tensors.items() if name not in fresh}
    if expected != stored:
        differing = sorted(
            name
            for name in expected.keys() | stored.keys()
            if expected.get(name) != stored.get(name)
        )
        name = differing[0]
        raise DetectorWeightsError(
            f"{folder}: {len(differing)} tensors do not fit the recipe's detector, first `{name}`: "
            f"stored {stored.get(name)}, needed {expected.get(name)}; "
            "use the detector settings in detector.json, or detector.init=random"
        )
    detector.load_state_dict(
        {name: tensors[name].to(own[name].dtype) for name in expected}, strict=False
    )
    for name in fresh:
        logger.info("starts from random weights, the stored classes are others: %s", name)
    logger.info("loaded %d of %d tensors from %s", len(expected), len(own), folder)
    return fresh


def _is_class_agnostic(name: str, value: torch.Tensor) -> bool:
    return "mask_head" in name and value.shape[0] == 1


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    stored = RunFolder(folder)
    try:
        description = json.loads(stored.detector_description.read_text(encoding="utf-8"))
        tensors = load_file(stored.detector)
    except FileNotFoundError as error:
        raise DetectorWeightsError(
            f"no detector in {folder}: {Path(str(error.filename or folder)).name} is missing; set "
            "detector.init to `random`, `baseline`, or a folder with detector.json and "
            "detector.safetensors"
        ) from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise DetectorWeightsError(f"the detector in {folder} cannot be read: {error}") from None
    if description.get("schema") != SCHEMA:
        raise DetectorWeightsError(
            f"{stored.detector_description} has schema {description.get('schema')!r}, this version "
            f"reads {SCHEMA!r}"
        )
    return description, tensors
