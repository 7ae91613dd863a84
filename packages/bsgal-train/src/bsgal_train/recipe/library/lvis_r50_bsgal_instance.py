"""LVIS v1, `lvis_r50_baseline` continued with a verdict for every pasted instance.

As `lvis_r50_bsgal_paper` in all but the selection: what looks show of an instance adds up and is
held against real objects; it is rejected if fewer than 5 % of them look as bad, and then hardly
drawn any more. Before the first step 4 images of each of the 1203 categories are visited, 4812 in
all: a batch of 16 rarely holds rare ones.
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
    # To judge a pool of a million anew takes seconds.
    selection=SelectionConfig(mode="instance", images_per_class=4, publish_every=500),
    checkpoint=lvis.CHECKPOINT,
)
