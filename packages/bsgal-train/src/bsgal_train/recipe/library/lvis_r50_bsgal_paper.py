"""LVIS v1, BSGAL's released ResNet-50 run: the baseline continued with one verdict per batch.

detector.init is the output folder of the baseline's run; compare with `lvis_r50_control`.
"""

import dataclasses

from bsgal_train.recipe import Recipe, SelectionConfig, lvis

recipe = Recipe(
    data=lvis.data(crop_px=640, n_workers=8),
    detector=dataclasses.replace(lvis.R50, init="runs/lvis_r50_baseline", backbone_weights=""),
    # 90,000 steps of 16 images are 1.44 M images: 14 passes over the 100,170 training images.
    schedule=lvis.schedule(n_steps=90_000, batch_size=16),
    optimizer=lvis.optimizer(batch_size=16),
    paste=lvis.PASTE,
    # Cosine of at least -0.05 with a cache that keeps a tenth of its old value.
    selection=SelectionConfig(mode="paper", threshold=-0.05, decay=0.1),
    checkpoint=lvis.CHECKPOINT,
)
