"""The shipped baseline: the built-in set from random weights, nothing generated.

Repeat-factor sampling is off. It would show the rare categories more often; the baseline is there
to be poor at them, so that generated instances have something to add.
"""

from bsgal_train.recipe.settings import (
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)

recipe = Recipe(
    data=DataConfig(repeat_threshold=0.0),
    detector=DetectorConfig(precision="bf16"),
    optimizer=OptimizerConfig(lr=1e-3),
    # 600 images, 8 a step: 75 steps are one pass, 4000 steps about 53.
    schedule=ScheduleConfig(
        n_steps=4000, batch_size=8, warmup_steps=200, log_every=25, eval_every=1000
    ),
    checkpoint=CheckpointConfig(every=250, keep=2),
)
