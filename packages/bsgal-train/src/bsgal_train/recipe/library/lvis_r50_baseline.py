"""LVIS v1, CenterNet2 with ResNet-50, nothing generated: what the others start from."""

from bsgal_train.recipe import lvis
from bsgal_train.recipe.settings import Recipe

recipe = Recipe(
    data=lvis.data(crop_px=640, n_workers=8),
    detector=lvis.R50,
    # 180,000 steps of 64 images are 11.5 M images: 115 passes over the 100,170 training images
    # (repeats of rare categories count as images).
    schedule=lvis.schedule(n_steps=180_000, batch_size=64),
    optimizer=lvis.optimizer(batch_size=64),
    checkpoint=lvis.CHECKPOINT,
)
