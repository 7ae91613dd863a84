"""A pool's card: `README.md`, for whoever is handed the folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bsgal_mask._files import write_atomically
from bsgal_mask._jsonl import Row
from bsgal_mask._meta import META_NAME
from bsgal_mask._summary import summarise_rows

# What we know of ourselves; of any other model only its own card can tell.
_LICENCES = {"tiny": "CC BY-SA 4.0, as its weights derive from drawings of OpenMoji"}
_NOT_STATED = "not stated: see the terms of what drew the images"


def write_card(
    pool_dir: Path, image_set_dir: Path, rows: Sequence[Row], licence: str | None
) -> None:
    """Write the card of a pool whose `meta.json` is in place.

    Args:
        pool_dir: The pool.
        image_set_dir: The image set that it was cut from.
        rows: The pool's rows.
        licence: Of the images, as the user states it; None states none.

    Raises:
        OSError: A file cannot be read or written.
    """
    meta = json.loads((pool_dir / META_NAME).read_bytes())
    summary = summarise_rows(rows)
    drawn_by = _model(image_set_dir)
    licence = _cell(licence or "") or _LICENCES.get(drawn_by, _NOT_STATED)
    lines = [
        "# Instance pool",
        "",
        "Objects cut out of single-object images, as RGBA PNGs; made by bsgal-mask. A run that "
        "goes on writes this card anew.",
        "",
        f"{summary.n_kept} instances kept of {summary.n_kept + summary.n_dropped} images.",
        "",
        "| | |",
        "|---|---|",
        f"| images drawn by | {drawn_by or 'not stated by the image set'} |",
        f"| image set (SHA-256 of its `meta.json`) | `{meta['source']['image_set']}` |",
        f"| licence | {licence} |",
        f"| masks found by | {', '.join(meta['config']['methods'])} |",
        "",
        "## Dropped",
        "",
        "| reason | images |",
        "|---|---|",
        *(f"| {code} | {count} |" for code, count in summary.dropped_by_reason.items()),
        "",
        "## Kept",
        "",
        "| category | instances |",
        "|---|---|",
        *(f"| {_cell(name)} | {count} |" for name, count in summary.kept_by_category.items()),
        "",
        "## Settings and versions",
        "",
        "```json",
        json.dumps({key: meta[key] for key in ("config", "versions")}, indent=2),
        "```",
        "",
    ]
    write_atomically(pool_dir / "README.md", "\n".join(lines).encode())


def _model(image_set_dir: Path) -> str:
    """Return the id of the model that drew the images, empty where the set does not say."""
    model = json.loads((image_set_dir / META_NAME).read_bytes()).get("model")
    name = model.get("id") if isinstance(model, dict) else None
    return _cell(name) if isinstance(name, str) else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
