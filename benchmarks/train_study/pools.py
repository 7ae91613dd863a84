"""Pools of the study: its own, made once, and any other that says what is spoilt of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train_study.kinds import SEEDS, Role
from train_study.plant import plant_defects

__all__ = ["OWN_POOLS", "StudyPool", "open_pool"]

Source = Literal["drawn", "generated"]

OWN_POOLS: dict[str, tuple[Source, Role | None]] = {
    "drawn-development": ("drawn", "development"),
    "drawn-held_back": ("drawn", "held_back"),
    "generated": ("generated", None),
    "generated-development": ("generated", "development"),
    "generated-held_back": ("generated", "held_back"),
}
"""Built-in drawings in random appearances, or instances of the built-in pipeline; and whose kinds
of defect are planted among them, if any."""


@dataclass(frozen=True, slots=True)
class StudyPool:
    """A pool of which it is known what is spoilt.

    Attributes:
        name: tells it from other pools, of the same folder name too.
        folder: of the pool; nothing is written there.
        planted: kind of defect by id of the instance.
        groups: frequency group (`r`, `c`, `f`) of the data's category, by id of the instance; only
            of those whose category the data has.
    """

    name: str
    folder: Path
    planted: Mapping[str, str]
    groups: Mapping[str, str]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of defect that occur, in order of their names."""
        return tuple(sorted(set(self.planted.values())))


def open_pool(named: str, state: Path, per_category: int) -> StudyPool:
    """Return a pool of the study's own by name, made if it is missing, or that of a folder.

    Args:
        named: of `OWN_POOLS`, or a folder with a pool and its `planted.json`.
        state: folder of the study, with its data set.
        per_category: instances of every category, in the study's own pools.

    Raises:
        SystemExit: if there is no such pool, or it does not say what is spoilt.
    """
    if named in OWN_POOLS:
        own = make_pool(named, state, per_category)
        return read_pool(own, f"{named}-{per_category}", state / "dataset")
    folder = Path(named)
    if not folder.is_dir():
        raise SystemExit(
            f"--pool {named}: there is no such folder, and the study's own pools are "
            f"{', '.join(OWN_POOLS)}"
        )
    digest = hashlib.sha256()
    for file in ("manifest.jsonl", "planted.json"):
        if (folder / file).is_file():
            digest.update((folder / file).read_bytes())
    return read_pool(folder, f"{folder.resolve().name}-{digest.hexdigest()[:8]}", state / "dataset")


def read_pool(folder: Path, name: str, dataset: Path) -> StudyPool:
    """Open a pool and check what it says is spoilt of it.

    Raises:
        SystemExit: what is missing or wrong, and where.
    """
    from bsgal_paste import EmptyPoolError, InstancePool, NoCommonCategoryError, PoolFormatError
    from bsgal_train.annotations import LvisAnnotations

    annotations = LvisAnnotations.load(dataset / "annotations/lvis_train.json", dataset / "images")
    try:
        pool = InstancePool.open(folder).match(annotations.categories)
    except (PoolFormatError, EmptyPoolError, NoCommonCategoryError) as error:
        raise SystemExit(f"--pool {folder}: {error}") from None
    frequencies = {one.category_id: one.frequency for one in annotations.categories}
    categories = pool.category_ids_of(range(len(pool))).tolist()
    groups = {pool.instance_id(i): str(frequencies[one]) for i, one in enumerate(categories)}
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["instance_id"]: row for row in map(json.loads, lines)}
    missing = [one for one in groups if not (folder / rows[one]["file"]).is_file()]
    if missing:
        raise SystemExit(
            f"--pool {folder}: {len(missing)} of {len(groups)} instances have no picture, the "
            f"first is {missing[0]!r} ({rows[missing[0]]['file']}): copy the pool's whole folder"
        )
    planted = read_planted(folder / "planted.json")
    if unknown := sorted(planted.keys() - rows.keys()):
        raise SystemExit(
            f"{folder / 'planted.json'} names {len(unknown)} instances that manifest.jsonl does "
            f"not have, such as {unknown[0]!r}: its keys are the manifest's `instance_id`"
        )
    drawable = {one: kind for one, kind in planted.items() if one in groups}
    if len(drawable) == len(groups):
        raise SystemExit(f"{folder / 'planted.json'}: every instance is spoilt, none is good")
    return StudyPool(name, folder, drawable, groups)


def read_planted(path: Path) -> dict[str, str]:
    """Return the kind of every spoilt instance, by its id.

    Raises:
        SystemExit: if the file is missing or holds something else.
    """
    form = 'it is an object such as {"127-0004": "noise"}, instance id to kind of defect'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"{path} is missing, so what is spoilt is unknown: {form}") from None
    except ValueError as error:
        raise SystemExit(f"{path} is not JSON ({error}): {form}") from None
    if not isinstance(found, dict):
        raise SystemExit(f"{path} holds a {type(found).__name__}: {form}")
    for one, kind in found.items():
        if not isinstance(kind, str) or not kind:
            raise SystemExit(f"{path}: the kind of {one!r} is {kind!r}, not a text: {form}")
    return found


def make_pool(named: str, state: Path, per_category: int) -> Path:
    """Return the folder of one of the study's own pools, made if it is missing."""
    from sprite_pool import write_sprite_pool

    source, role = OWN_POOLS[named]
    seed = SEEDS[role or "development"]
    plain = state / "pools" / f"{source}-{per_category}-seed{seed}"
    if source == "drawn":
        write_sprite_pool(plain, per_category, seed)
    else:
        generate_pool(plain, state / "dataset", per_category, seed)
    if role is not None:
        return plant_defects(plain, state / "pools" / f"{named}-{per_category}", role)
    (plain / "planted.json").write_text("{}", encoding="utf-8")
    return plain


def generate_pool(folder: Path, dataset: Path, per_category: int, seed: int) -> None:
    """Generate and cut out instances with what ships with the packages."""
    from bsgal_generate import (
        TEMPLATES,
        GenerationPlan,
        SamplingConfig,
        generate,
        load_categories,
        load_pipeline,
    )
    from bsgal_mask import BorderSegmenter, build_pool

    if (folder / "meta.json").is_file():
        return
    plan = GenerationPlan(
        categories=tuple(load_categories(dataset / "annotations/lvis_train.json")),
        images_per_category=per_category,
        templates=(TEMPLATES["single_noun"],),
        seed=seed,
    )
    images = folder.with_name(f"{folder.name}-images")
    config = SamplingConfig(num_inference_steps=15)
    generate(plan, load_pipeline("tiny"), images, config=config)
    build_pool(images, folder, methods=(BorderSegmenter(),))
