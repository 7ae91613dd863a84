"""One process of a run: judge and differentiate its share of four samples, and save what came out.

Arguments: folder of the tiny data, rank, number of processes, output folder, then a JSON list of
cases, each with the settings of `selection` and of the detector. They are run one after the other.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bsgal_paste import CategoryBalancedSampler, CopyPaste, InstancePool, UniformScale
from bsgal_train.annotations import LvisAnnotations
from bsgal_train.data import ClassMatchedReference, RandomCrop, TrainingMapper
from bsgal_train.detector import build_detector
from bsgal_train.engine.update import OptimizerStep
from bsgal_train.processes import group as processes
from bsgal_train.recipe import DetectorConfig, PasteConfig, Recipe, SelectionConfig
from bsgal_train.selection import build_selection

N_SAMPLES, N_STEPS = 4, 3
CROP = RandomCrop(crop_px=64)
DETECTOR = DetectorConfig(
    backbone_channels=(8, 8, 16, 16),
    fpn_channels=32,
    head_channels=32,
    n_mask_convs=1,
    box_features=32,
    rois_per_image=16,
    proposals_per_image=30,
)


def main(data: Path, rank: int, n_processes: int, out: Path, cases: str) -> None:
    torch.set_num_threads(1)
    if n_processes > 1:
        meeting = f"file://{out / 'store'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=n_processes)
    found = [run_case(data, rank, n_processes, case) for case in json.loads(cases)]
    torch.save(found, out / f"{rank}-of-{n_processes}.pt")
    if n_processes > 1:
        dist.destroy_process_group()


def run_case(data: Path, rank: int, n_processes: int, case: dict[str, Any]) -> dict[str, Any]:
    recipe = Recipe(
        detector=replace(DETECTOR, **case["detector"]),
        selection=SelectionConfig(**case["selection"]),
        paste=PasteConfig(pool="pool"),
    )
    annotations = LvisAnnotations.load(data / "train.json", data)
    pool = InstancePool.open(data / "pool").match(annotations.categories)
    paste = CopyPaste(
        pool,
        CategoryBalancedSampler(pool, count_range=(1, 3)),
        UniformScale(scale_range=(0.3, 0.4)),
    )
    mapper = TrainingMapper(annotations, CROP, seed=0, copy_paste=paste)
    torch.manual_seed(0)
    counts = [category.image_count for category in annotations.categories]
    detector = build_detector(recipe.detector, 3, counts)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    update = OptimizerStep(detector, optimizer, recipe.optimizer, "fp32")
    reference = ClassMatchedReference(annotations, CROP)
    selection = build_selection(recipe, detector, reference, update)
    share = N_SAMPLES // n_processes
    decisions, gradients = [], []
    for step in range(1, N_STEPS + 1):
        samples = [mapper(i, i) for i in range(rank * share, (rank + 1) * share)]
        selected = selection(detector, samples, step, seed=step)
        optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(torch.stack(list(selected.losses.values())).sum())
        processes.average_gradients(detector.parameters())
        # Adam's first steps only tell the signs of gradients.
        gradients.append(
            {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
        )
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        decisions += [
            [step, row.image_id, row.instance_id, row.contribution, row.verdict, row.threshold]
            for row in selected.decisions
        ]
    weights = {name: p.detach() for name, p in detector.named_parameters()}
    return {"decisions": decisions, "gradients": gradients, "weights": weights}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
