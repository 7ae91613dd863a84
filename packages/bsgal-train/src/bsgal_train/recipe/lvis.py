"""What the recipes for LVIS v1 share: CenterNet2 as BSGAL, X-Paste and DiverGen configure it.

Numbers are those of the released configurations (BSGAL, arXiv 2406.02435; CenterNet2, arXiv
2103.07461). Deliberate differences:

- bf16 where they run the backbone in fp16 with a loss scaler.
- Federated classes: 50 are counted without the background (see `detector.federated`).
- The moving average of the weights starts from the loaded weights and follows each step; theirs
  starts before loading and is updated before the step.

Batch sizes are of all processes together: on n of them set schedule.batch_size to an n-th. With
fewer images per step the rate follows by itself (`optimizer.lr_batch_size`); to keep the batch, set
schedule.n_accumulate.
"""

from __future__ import annotations

import dataclasses

from bsgal_train.recipe.settings import (
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    PasteConfig,
    ScheduleConfig,
)

__all__ = ["CHECKPOINT", "PASTE", "R50", "SWIN_L", "data", "optimizer", "schedule"]

R50 = DetectorConfig(
    architecture="centernet2",
    backbone="resnet50",
    backbone_channels=(),
    # ImageNet-21K-P weights (Ridnik et al., arXiv 2104.10972), which are published as a .pth file.
    backbone_weights="weights/resnet50_miil_21k.pth",
    backbone_norm="frozen",
    fpn_channels=256,
    head_channels=256,
    head_norm="none",
    n_tower_convs=4,
    n_box_convs=0,
    n_box_fcs=2,
    n_mask_convs=4,
    box_features=1024,
    rois_per_image=512,
    roi_samples=(0, 0),
    # 4000 of a level enter the suppression in training, 1000 at prediction.
    proposals_per_image=2000,
    test_proposals_per_image=256,
    test_proposals_before_nms=1000,
    federated_classes=50,
    score_threshold=0.02,
    detections_per_image=300,
    image_short_px=800,
    image_px=1333,
    precision="bf16",
)

SWIN_L = dataclasses.replace(
    R50,
    backbone="swin_large_patch4_window12_384",
    backbone_weights="hub:timm/swin_large_patch4_window12_384.ms_in22k",
    backbone_norm="own",
    drop_path=0.3,
)

# Up to 19 instances an image, uniformly; scales from the training annotations.
PASTE = PasteConfig(pool="pool", max_instances=19)

CHECKPOINT = CheckpointConfig(every=10_000, keep=3)


def data(crop_px: int, n_workers: int) -> DataConfig:
    """Return the LVIS v1 files in COCO's folders, with large-scale jitter of 0.1 to 2."""
    return DataConfig(
        train_json="lvis/lvis_v1_train.json",
        val_json="lvis/lvis_v1_val.json",
        # Validation images lie in train2017 and val2017, as the files' coco_url says.
        image_root="coco",
        crop_px=crop_px,
        scale_range=(0.1, 2.0),
        repeat_threshold=0.001,
        n_workers=n_workers,
    )


def optimizer(batch_size: int) -> OptimizerConfig:
    """Return AdamW at 1e-4, which is meant for the given batch."""
    return OptimizerConfig(
        lr=1e-4,
        lr_batch_size=batch_size,
        weight_decay=1e-4,
        decay_all=True,
        clip_norm=1.0,
        clip_type="value",
        ema_decay=0.999,
    )


def schedule(n_steps: int, batch_size: int) -> ScheduleConfig:
    """Return 10,000 steps of warm-up, then a cosine to 0."""
    return ScheduleConfig(
        n_steps=n_steps,
        batch_size=batch_size,
        warmup_steps=10_000,
        final_lr_factor=0.0,
        eval_every=30_000,
    )
