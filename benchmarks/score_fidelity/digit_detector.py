"""The detector's setting: a small Mask R-CNN on digits pasted into photographs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .detector import HEADS, Losses, losses, make_detector, propose
from .scenes import KINDS, Scene, draw_scene
from .setting import Memory, Setting, gradients, total

BATCH = 4
N_STEPS = 300
# The last steps are those of the optimizer under study, the others AdamW's in both cases.
N_OWN = 60
N_TAIL = 24
N_SCENES = 160
RATES = {"sgd": 0.02, "adamw": 1e-3}


def make_setting(optimizer_name: str, seed: int, *, n_candidates: int, quick: bool) -> Setting:
    """Train, and draw candidates: scenes with one more object of each kind of `KINDS` in turn.

    Image units are whole scenes; instance units the proposals that matched the further object.
    """
    n_steps, n_own, n_scenes = (20, 5, 8) if quick else (N_STEPS, N_OWN, N_SCENES)
    rng = np.random.default_rng(seed)
    detector = make_detector()
    training = [
        draw_scene(rng, training=True, n_objects=int(rng.integers(2, 5))) for _ in range(n_scenes)
    ]
    optimizer = _optimizer("adamw", detector)
    state, optimizer_state = _pretrained(seed, n_steps - n_own, n_scenes)
    detector.load_state_dict(state)
    if optimizer_name == "adamw":
        optimizer.load_state_dict(deepcopy(optimizer_state))
    else:
        optimizer = _optimizer(optimizer_name, detector)
    memory = Memory.of(detector, optimizer, rowwise=["roi_heads.box_predictor.cls_score.*"])
    pool = [draw_scene(rng, training=False) for _ in range(n_scenes)]
    reference = [draw_scene(rng, training=False) for _ in range(12)]

    def seeded(scenes: list[Scene], proposals: list[Tensor]) -> Losses:
        # The same anchors and proposals are sampled each time, so that only the weights matter.
        torch.manual_seed(seed)
        return losses(detector, scenes, proposals)

    for step in range(n_own):
        if step >= n_own - N_TAIL:
            # The fixed batch counts by its last difference alone.
            with_fixed = step == n_own - 1
            _feed(memory, detector, pool, reference, rng, seeded, with_fixed=with_fixed)
        _train_step(detector, optimizer, training, rng)
    optimizer.zero_grad(set_to_none=True)
    _feed(memory, detector, pool, reference, rng, seeded, with_fixed=True)

    reference_proposals = propose(detector, reference)
    batch = [training[i] for i in rng.integers(n_scenes, size=BATCH - 1)]
    rest = seeded(batch, propose(detector, batch)).total() * (BATCH - 1) / BATCH
    scenes = [
        draw_scene(rng, training=False, kind=KINDS[i % len(KINDS)]) for i in range(n_candidates)
    ]
    proposals = [propose(detector, [scene]) for scene in scenes]

    def candidate(i: int) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return both losses and unit indices of a scene: of the image and of its last object."""
        found = seeded([scenes[i]], proposals[i])
        own = found.box_object == len(scenes[i].labels) - 1
        instance = found.boxes[own].sum() + found.masks[own[found.foreground]].sum()
        image_rows = torch.zeros_like(found.box_object)
        instance_rows = torch.where(own, 0, -2)
        return (
            found.total() / BATCH,
            instance / BATCH,
            _rows(image_rows, found.foreground),
            _rows(instance_rows, found.foreground),
        )

    images, instances, with_proposals = [], [], []
    for i in range(n_candidates):
        image_loss, instance_loss, _, rows = candidate(i)
        images.append(gradients(detector, image_loss, retain_graph=True))
        # An object that no proposal was matched with gives no evidence.
        if bool((rows[HEADS[0]] == 0).any()):
            with_proposals.append(i)
            instances.append(gradients(detector, instance_loss))
    return Setting(
        model=detector,
        optimizer=optimizer,
        reference_loss=lambda: seeded(reference, reference_proposals).total(),
        rest=gradients(detector, rest),
        candidates={
            "image": images,
            "instance": instances,
            "batch": [
                total([images[i] for i in rng.permutation(n_candidates)[:BATCH]])
                for _ in range(n_candidates)
            ],
        },
        head_modules=[detector.get_submodule(name) for name in HEADS],
        head_excludes=["backbone.*", "rpn.*"],
        ghost_passes={
            "image": [lambda i=i: candidate(i)[0::2] for i in range(n_candidates)],
            "instance": [lambda i=i: candidate(i)[1::2] for i in with_proposals],
        },
        memory=memory,
        quality=_quality(detector, reference, reference_proposals),
    )


def _train_step(
    detector: Any, optimizer: torch.optim.Optimizer, scenes: list[Scene], rng: np.random.Generator
) -> None:
    batch = [scenes[i] for i in rng.integers(len(scenes), size=BATCH)]
    optimizer.zero_grad()
    losses(detector, batch, propose(detector, batch)).total().backward()
    optimizer.step()


@cache
def _pretrained(seed: int, n_steps: int, n_scenes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return weights and state of AdamW after the first steps."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    detector = make_detector()
    optimizer = _optimizer("adamw", detector)
    scenes = [
        draw_scene(rng, training=True, n_objects=int(rng.integers(2, 5))) for _ in range(n_scenes)
    ]
    for _ in range(n_steps):
        _train_step(detector, optimizer, scenes, rng)
    return deepcopy(detector.state_dict()), deepcopy(optimizer.state_dict())


def _optimizer(name: str, detector: Any) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(detector.parameters(), lr=RATES[name], momentum=0.9)
    return torch.optim.AdamW(detector.parameters(), lr=RATES[name])


def _feed(
    memory: Memory,
    detector: Any,
    pool: list[Scene],
    reference: list[Scene],
    rng: np.random.Generator,
    seeded: Callable[[list[Scene], list[Tensor]], Losses],
    *,
    with_fixed: bool,
) -> None:
    with torch.random.fork_rng():
        fresh = [pool[i] for i in rng.integers(len(pool), size=BATCH)]
        fresh_gradients = gradients(detector, seeded(fresh, propose(detector, fresh)).total())
        fixed = None
        if with_fixed:
            loss = seeded(reference, propose(detector, reference)).total()
            fixed = gradients(detector, loss)
    classes = torch.cat([scene.labels for scene in fresh]).unique()
    # Every proposal without an object is of class 0.
    memory.feed(fresh_gradients, torch.cat([torch.zeros(1).long(), classes]), fixed)


def _rows(box_rows: Tensor, foreground: Tensor) -> dict[str, Tensor]:
    mask_rows = box_rows[foreground]
    return {name: mask_rows if "mask" in name else box_rows for name in HEADS}


def _quality(detector: Any, scenes: list[Scene], proposals: list[Tensor]) -> dict[str, float]:
    """Return the reference loss, and how often annotated boxes are given their class."""
    with torch.no_grad():
        found = losses(detector, scenes, proposals)
        pixels = (torch.stack([scene.image for scene in scenes]) - 0.45) / 0.25
        features = {"0": detector.backbone(pixels)}
        heads = detector.roi_heads
        pooled = heads.box_roi_pool(
            features, [scene.boxes for scene in scenes], [pixels.shape[-2:]] * len(scenes)
        )
        logits, _ = heads.box_predictor(heads.box_head(pooled))
        labels = torch.cat([scene.labels for scene in scenes])
        right = (logits[:, 1:].argmax(1) + 1 == labels).double().mean().item()
    return {"reference_loss": found.total().item(), "class_accuracy": right}
