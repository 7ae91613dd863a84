"""LVIS v1, CenterNet2 with ResNet-50, every pasted instance trained on (X-Paste, arXiv 2212.03863).

The same length as `lvis_r50_baseline`; give the pool with paste.pool.
"""

from bsgal_train.recipe import Recipe, SelectionConfig, lvis

recipe = Recipe(
    data=lvis.data(crop_px=640, n_workers=8),
    detector=lvis.R50,
    # As the baseline: 180,000 x 64 = 11.5 M images, 115 passes.
    schedule=lvis.schedule(n_steps=180_000, batch_size=64),
    optimizer=lvis.optimizer(batch_size=64),
    paste=lvis.PASTE,
    selection=SelectionConfig(mode="paste_all"),
    checkpoint=lvis.CHECKPOINT,
)
