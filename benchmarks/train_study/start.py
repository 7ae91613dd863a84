"""The detector that every arm starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def forget_rare(folder: Path) -> Path:
    """Store the shipped detector with fresh classifier rows for the rare categories."""
    import torch

    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.detector import build_detector, load_weights, save_detector
    from bsgal_train.recipe.library import load_recipe

    dataset, start = folder / "dataset", folder / "start"
    if start.is_dir():
        return start
    annotations = LvisAnnotations.load(dataset / "annotations/lvis_train.json", dataset / "images")
    names = [category.name for category in annotations.categories]
    config = load_recipe("builtin_continue").detector
    torch.manual_seed(0)
    fresh: Any = build_detector(config, len(names))
    detector: Any = build_detector(config, len(names))
    load_weights(detector, "baseline", names)
    rare = torch.tensor([category.frequency == "r" for category in annotations.categories])
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows, its_fresh = (
                getattr(one.roi_heads.box_predictor.cls_score, name) for one in (detector, fresh)
            )
            rows[rare] = its_fresh[rare]
    partial = folder / "start.partial"
    save_detector(partial, detector, config, names)
    partial.rename(start)
    return start
