"""The flags of `bsgal-mask run`, and what settings mean to `build_pool`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bsgal_mask._choice import AgreementChoice, Choice, FixedChoice
from bsgal_mask._clip import Clip
from bsgal_mask._clip_choice import ClipChoice
from bsgal_mask._clipseg import ClipSegSegmenter
from bsgal_mask._filters import Filter
from bsgal_mask._own_alpha import AlphaSegmenter
from bsgal_mask._sam import Sam, SamBackgroundSegmenter, SamBoxSegmenter
from bsgal_mask._segmenter import Segmenter
from bsgal_mask._settings_file import add_flags
from bsgal_mask._similarity import RealCrops, SimilarityRule
from bsgal_mask._u2net import U2NetSegmenter
from bsgal_mask.config import ClipConfig, ClipSegConfig, MaskConfig, SamConfig
from bsgal_mask.errors import SettingsError

FLAGS = {
    "--method": "pool.methods",
    "--choose": "pool.choose",
    "--device": "pool.device",
    "--licence": "pool.licence",
    "--u2net-model": "u2net.model",
    "--clipseg-model": "clipseg.model",
    "--sam-model": "sam.model",
    "--clip-model": "clip.model",
    "--min-agreement": "agreement.min_agreement",
    "--min-area": "area.min_frac",
    "--max-area": "area.max_frac",
    "--object-colours": "edges.object_colours",
}
"""What is changed daily; everything else is changed in the settings file."""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; their defaults are those of the classes they configure."""
    parser.epilog = (
        "--method may be given several times. A model that is not in the hub's local cache is "
        "downloaded only if its revision is named. Nothing else is ever downloaded."
    )
    add = parser.add_argument
    images = add("image_set", metavar="IMAGE_SET", type=Path,
                 help="folder that bsgal-generate wrote")  # fmt: skip
    pool = add("--out", metavar="POOL", type=Path, required=True, help="folder of the pool")
    add("--dry-run", action="store_true", help="say how many images are left to do, and stop")
    add("--quiet", action="store_true", help="show no progress")
    add_flags(parser, MaskConfig(), FLAGS, required=(images, pool))


def pool_settings(config: MaskConfig) -> dict[str, Any]:
    """Return the arguments of `build_pool` that settings stand for; loads the models.

    Raises:
        SettingsError: A model or a folder that they need is not named.
    """
    clip = None
    if config.pool.choose == "clip" or config.similarity.annotations is not None:
        clip = Clip(**_loading(config, "clip"))
    filters: list[Filter] = [getattr(config, name) for name in config.pool.filters]
    return {
        "methods": _methods(config),
        "choose": _choice(config, clip),
        "filters": filters,
        "similarity": _similarity(config, clip),
        "clean_up": config.clean_up,
        "edges": config.edges,
        "label_mask_threshold": config.pool.label_mask_threshold,
        "batch_size": config.pool.batch_size,
        "max_image_px": config.pool.max_image_px,
        "licence": config.pool.licence,
    }


def _methods(config: MaskConfig) -> list[Segmenter]:
    names = config.pool.methods
    sam = None
    if {"sam_background", "sam_box"} & set(names):
        sam = Sam(**_loading(config, "sam"))

    def method(name: str) -> Segmenter:
        if name == "border":
            return config.border
        if name == "alpha":
            return AlphaSegmenter()
        if name == "u2net":
            u2net = config.u2net
            return U2NetSegmenter(
                u2net.model,
                provider=u2net.provider,
                n_threads=u2net.n_threads,
                batch_size=u2net.batch_size,
            )
        if name == "clipseg":
            text = config.clipseg
            return ClipSegSegmenter(
                **_loading(config, "clipseg"),
                template=text.template,
                stretch=text.stretch,
                min_peak=text.min_peak,
            )
        assert sam is not None
        if name == "sam_background":
            return SamBackgroundSegmenter(sam, corner_margin_frac=config.sam.corner_margin_frac)
        return SamBoxSegmenter(
            sam, boxes_from=method(config.sam.box_from), margin_frac=config.sam.box_margin_frac
        )

    return [method(name) for name in names]


def _choice(config: MaskConfig, clip: Clip | None) -> Choice:
    rules: dict[str, AgreementChoice | FixedChoice] = {
        "agreement": config.agreement,
        "fixed": FixedChoice(),
    }
    if config.pool.choose in rules:
        return rules[config.pool.choose]
    assert clip is not None
    return ClipChoice(clip=clip, template=config.clip.template, category_bar=config.category_bar)


def _similarity(config: MaskConfig, clip: Clip | None) -> SimilarityRule | None:
    rule = config.similarity
    if rule.annotations is None:
        return None
    if rule.image_dir is None:
        raise SettingsError("[similarity] annotations needs image_dir: the folder of their images")
    assert clip is not None
    references = RealCrops.from_lvis(
        clip,
        rule.annotations,
        rule.image_dir,
        max_per_category=rule.max_per_category,
        max_image_px=config.pool.max_image_px,
        cache=rule.cache,
    )
    return SimilarityRule(references=references, min_similarity=rule.min_similarity)


def _loading(config: MaskConfig, table: str) -> dict[str, Any]:
    """Return what a model of transformers is loaded with; it is `FOLDER` or `ID@REVISION`."""
    part: ClipConfig | ClipSegConfig | SamConfig = getattr(config, table)
    if part.model is None:
        raise SettingsError(
            f"--{table}-model is needed, or [{table}] model in a settings file: name a folder, or "
            "ID@REVISION of a hub"
        )
    model, _, revision = part.model.partition("@")
    if Path(part.model).exists():
        model, revision = part.model, ""
    return {
        "model": model,
        "revision": revision or None,
        "device": config.pool.device,
        "dtype": config.pool.dtype,
        "batch_size": part.batch_size,
    }
