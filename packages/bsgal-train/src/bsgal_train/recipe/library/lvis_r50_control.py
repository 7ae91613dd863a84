"""LVIS v1, the trained baseline continued on real data: the control of the bsgal recipes.

They continue a trained detector, so what they gain must be measured against one that was continued
equally long. The second control is this recipe with selection.mode=paste_all and a pool.
"""

import dataclasses

from bsgal_train.recipe import lvis
from bsgal_train.recipe.settings import Recipe

recipe = Recipe(
    data=lvis.data(crop_px=640, n_workers=8),
    detector=dataclasses.replace(lvis.R50, init="runs/lvis_r50_baseline", backbone_weights=""),
    # 90,000 steps of 16 images are 1.44 M images: 14 passes over the 100,170 training images.
    schedule=lvis.schedule(n_steps=90_000, batch_size=16),
    optimizer=lvis.optimizer(batch_size=16),
    checkpoint=lvis.CHECKPOINT,
)
