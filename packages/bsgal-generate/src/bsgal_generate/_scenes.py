"""Scenes without an object of their own: backgrounds to paste instances into."""

from __future__ import annotations

from collections.abc import Sequence

from ._categories import SCENE
from ._plan import GenerationPlan

SCENE_PROMPTS: tuple[str, ...] = (
    "a wide photo of a city square with buildings around it",
    "a photo of a city skyline seen across a river",
    "a photo of an empty car park between office buildings",
    "a photo of an empty street in a town, early in the morning",
    "a photo of a pavement along a row of shops, without people",
    "a photo of an empty road in the rain",
    "a photo of an empty living room with bare walls",
    "a photo of an empty kitchen worktop and tiled wall",
    "a photo of a bare wooden table in front of a plain wall",
    "a photo of an empty office floor with large windows",
    "a photo of a tidy bedroom in daylight",
    "a photo of a workshop floor of concrete",
    "a wide photo of a meadow under a cloudy sky",
    "a photo of a forest path with fallen leaves",
    "a photo of a sandy beach and a calm sea",
    "a photo of a lake between mountains",
    "a photo of a mown lawn in a garden",
    "a photo of a village lane with stone houses",
    "a photo of a farmyard without animals",
    "a photo of a field path at the edge of a village",
    "a photo of a dry savanna with scattered bushes",
    "a photo of a desert with low dunes",
    "a photo of a snowy plain",
    "a photo of a rocky slope with sparse grass",
)
"""Prompts of empty places, several of each of the six kinds that X-Paste draws backgrounds of
(https://github.com/yoctta/XPaste): city, street, room, nature, village and wild land."""


def scene_plan(
    n_images: int,
    *,
    prompts: Sequence[str] = SCENE_PROMPTS,
    seed: int = 0,
    negative_prompt: str | None = None,
) -> GenerationPlan:
    """Plan backgrounds: images of scenes, which take turns over the prompts.

    Their rows are of the kind "scene". Keep them in an image set of their own: there is nothing in
    them to cut out.

    Args:
        n_images: Images in all.
        prompts: The scenes.
        seed: Seed of the whole run.
        negative_prompt: What every image should steer away from, or None.

    Raises:
        ValueError: The number is below 1, or a prompt is empty or given twice.
    """
    return GenerationPlan(
        categories=(SCENE,),
        images_per_category=n_images,
        seed=seed,
        prompts={SCENE.category_id: tuple(prompts)},
        negative_prompt=negative_prompt,
    )
