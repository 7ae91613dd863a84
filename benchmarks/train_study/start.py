"""The detector that every arm starts from: it knows nothing of the rare categories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from _harness import ROOT

__all__ = ["STARTS", "Start", "start_detector"]

Start = Literal["never_seen", "forgotten"]
"""A detector trained on images without any rare object; or the shipped one, which has seen them,
with its classifier's rows of the rare categories drawn anew."""

STARTS: tuple[Start, ...] = get_args(Start)


def start_detector(start: Start, state: Path, *, threads: int, n_steps: int | None = None) -> Path:
    """Return the folder of the detector, made if it is missing.

    Args:
        start: which one.
        state: folder of the study, with its data set.
        threads: of torch while a detector is trained.
        n_steps: of that training, unless as many as its command takes.
    """
    folder = state / start
    if start == "forgotten":
        forget_rare(folder, state / "dataset")
    elif not (folder / "results.json").is_file():
        # Half an hour, once; started again it goes on.
        command = [
            sys.executable, str(ROOT / "models/never_seen_detector/train.py"),
            "--out", str(folder), "--data", str(state / "dataset"), "--threads", str(threads),
        ]  # fmt: skip
        subprocess.run(
            command if n_steps is None else [*command, "--steps", str(n_steps)], check=True
        )
    return folder


def forget_rare(folder: Path, dataset: Path) -> None:
    """Store the shipped detector with fresh classifier rows for the rare categories."""
    import torch

    from bsgal_train.annotations import LvisAnnotations
    from bsgal_train.detector import build_detector, load_weights, save_detector
    from bsgal_train.recipe.library import load_recipe

    if folder.is_dir():
        return
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
    partial = folder.with_name(f"{folder.name}.partial")
    save_detector(partial, detector, config, names)
    partial.rename(folder)
