"""LVIS v1, CenterNet2 with Swin-L, a verdict for every pasted instance; from ImageNet-22K.

Verdicts come from the pass that is trained on, so this recipe alone trains without drop-path.
"""

from bsgal_train.recipe import Recipe, SelectionConfig, lvis

recipe = Recipe(
    data=lvis.data(crop_px=896, n_workers=16),
    detector=lvis.SWIN_L,
    # 180,000 steps of 16 images are 2.88 M images: 29 passes over the 100,170 training images.
    schedule=lvis.schedule(n_steps=180_000, batch_size=16),
    optimizer=lvis.optimizer(batch_size=16),
    paste=lvis.PASTE,
    # To judge a pool of a million anew takes seconds.
    selection=SelectionConfig(mode="instance", images_per_class=4, publish_every=500),
    checkpoint=lvis.CHECKPOINT,
)
