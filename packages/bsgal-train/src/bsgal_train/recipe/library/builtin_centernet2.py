"""A small CenterNet2 on the built-in set, from random weights, for a processor without a GPU.

Add `paste.pool=... selection.mode=instance` (or another mode) to train with generated instances.
"""

from bsgal_train.recipe.settings import (
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)

recipe = Recipe(
    data=DataConfig(repeat_threshold=0.0),
    detector=DetectorConfig(
        architecture="centernet2",
        n_box_convs=0,
        n_box_fcs=2,
        head_norm="none",
        federated_classes=20,
        precision="bf16",
    ),
    optimizer=OptimizerConfig(lr=5e-4, ema_decay=0.99),
    # 600 images, 8 a step: 75 steps are one pass, 4000 steps about 53.
    schedule=ScheduleConfig(n_steps=4000, batch_size=8, warmup_steps=200, eval_every=1000),
)
