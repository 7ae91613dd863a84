"""Pictures and prompts of judged instances, from their pool."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from bsgal_paste import InstancePool
from bsgal_train.inspect.report.content import JudgedInstance
from bsgal_train.inspect.report.verdicts import InstanceVerdicts

__all__ = ["as_png", "manifest_rows", "picture", "pictured"]

PICTURE_PX = 160


def pictured(chosen: Iterable[InstanceVerdicts], pool_folder: Path) -> list[JudgedInstance]:
    """Add category, prompt and picture to instances, in their order.

    Raises:
        ValueError: there is no such pool, it lacks one of the instances, or an image of it cannot
            be read.
    """
    chosen = list(chosen)
    pool = InstancePool.open(pool_folder)
    rows = manifest_rows(pool_folder, {one.instance_id for one in chosen})
    return [
        JudgedInstance(
            instance_id=one.instance_id,
            category=str(rows[one.instance_id].get("category_name", "")),
            frequency=one.frequency,
            prompt=str(rows[one.instance_id].get("prompt", "")),
            picture_png=picture(pool, one.instance_id),
            contribution=one.contribution,
            times_judged=one.times_judged,
            times_accepted=one.times_accepted,
        )
        for one in chosen
    ]


def manifest_rows(pool_folder: Path, instance_ids: set[str]) -> dict[str, dict[str, Any]]:
    """Read some rows of a manifest that may be far larger than what is looked for.

    Raises:
        ValueError: the manifest lacks one of them.
    """
    found: dict[str, dict[str, Any]] = {}
    with (pool_folder / "manifest.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            if len(found) == len(instance_ids):
                break
            if line.endswith("\n"):
                row = json.loads(line)
                if row.get("instance_id") in instance_ids:
                    found[row["instance_id"]] = row
    missing = instance_ids - set(found)
    if missing:
        raise ValueError(
            f"the pool {pool_folder} lacks {len(missing)} of the instances that the run judged, "
            f"such as {min(missing)}; it was changed since, or is another one"
        )
    return found


def picture(pool: InstancePool, instance_id: str) -> bytes:
    """Return an instance on white, as PNG.

    Raises:
        ValueError: its image cannot be read.
    """
    rgba = Image.fromarray(pool.read(pool.position_of(instance_id)).rgba, "RGBA")
    rgba.thumbnail((PICTURE_PX, PICTURE_PX))
    page = Image.new("RGBA", rgba.size, "white")
    page.alpha_composite(rgba)
    return as_png(page.convert("RGB"))


def as_png(image: Image.Image) -> bytes:
    """Return an RGB image as PNG, small enough to be carried in a page."""
    image.thumbnail((PICTURE_PX, PICTURE_PX))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
