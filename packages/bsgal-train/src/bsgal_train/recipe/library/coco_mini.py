"""Photographs in LVIS layout, some hundreds of images, starting from the shipped baseline.

Say where they are with `data.train_json`, `data.val_json`, `data.image_root` and
`data.val_image_root`.
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
        # Repeats the images of categories in less than 5 of 100 images.
        repeat_threshold=0.05,
    ),
    # Longer side 384 at prediction: about the object sizes of the training crops.
    detector=DetectorConfig(init="baseline", image_px=384, detections_per_image=300),
    optimizer=OptimizerConfig(lr=5e-4),
    schedule=ScheduleConfig(n_steps=2000, batch_size=4, warmup_steps=100),
)
