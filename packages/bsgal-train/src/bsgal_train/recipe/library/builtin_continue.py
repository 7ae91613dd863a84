"""Continue the shipped baseline on the built-in set; choose the mode with `selection.mode`.

The control without generated data is this recipe as it is; the other arms add
`paste.pool=... selection.mode=paper` (or `paste_all`) and nothing else.
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
    detector=DetectorConfig(init="baseline"),
    # A tenth of the baseline's peak rate, as a continued run starts from a minimum.
    optimizer=OptimizerConfig(lr=1e-4),
    schedule=ScheduleConfig(n_steps=200, batch_size=8, warmup_steps=20, log_every=10),
)
