"""A small CenterNet2 on some hundreds of photographs, from random weights.

Say where they are with `data.train_json`, `data.val_json`, `data.image_root` and
`data.val_image_root`. Far too few images for a good detector: a check that everything runs.
"""

from bsgal_train.recipe.settings import (
    DataConfig,
    DetectorConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
)

recipe = Recipe(
    data=DataConfig(
        train_json="lvis_train.json",
        image_root="images/train",
        crop_px=256,
        scale_range=(0.5, 1.5),
        repeat_threshold=0.05,
    ),
    detector=DetectorConfig(
        architecture="centernet2",
        n_box_convs=0,
        n_box_fcs=2,
        head_norm="none",
        federated_classes=20,
        image_px=384,
        detections_per_image=300,
    ),
    optimizer=OptimizerConfig(lr=5e-4),
    # 100 images, 4 a step: 25 steps are one pass, 2000 steps 80.
    schedule=ScheduleConfig(n_steps=2000, batch_size=4, warmup_steps=100),
)
