"""LVIS v1, CenterNet2 with Swin-L and one gradient verdict per batch; from ImageNet-22K weights.

The released Swin-L configuration compares losses of trial steps instead, and does not run as it was
released; this is the ResNet-50 run's rule at the Swin-L run's length.
"""

from bsgal_train.recipe import Recipe, SelectionConfig, lvis

recipe = Recipe(
    data=lvis.data(crop_px=896, n_workers=16),
    detector=lvis.SWIN_L,
    # 180,000 steps of 16 images are 2.88 M images: 29 passes over the 100,170 training images.
    schedule=lvis.schedule(n_steps=180_000, batch_size=16),
    optimizer=lvis.optimizer(batch_size=16),
    paste=lvis.PASTE,
    selection=SelectionConfig(mode="paper", threshold=-0.05, decay=0.1),
    checkpoint=lvis.CHECKPOINT,
)
