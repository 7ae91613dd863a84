from __future__ import annotations

import json

import numpy as np

from bsgal_mask import BorderSegmenter, build_pool
from bsgal_mask.cli import main


def test_a_pool_has_a_card_with_counts_source_and_licence(make_image_set, drawn, tmp_path):
    images = make_image_set(
        {"a": drawn("disc")[0], "b": np.full((96, 96, 3), 200, np.uint8), "c": "failed"}
    )
    meta = {"schema": "bsgal.image_set/1", "model": {"id": "tiny"}}
    (images / "meta.json").write_text(json.dumps(meta))

    build_pool(images, tmp_path / "pool", methods=[BorderSegmenter()])

    card = (tmp_path / "pool/README.md").read_text(encoding="utf-8")
    assert "1 instances kept of 3 images." in card
    assert "| images drawn by | tiny |" in card
    assert "| licence | CC BY-SA 4.0" in card
    assert "| ball_(toy) | 1 |" in card
    assert "| image-set | 1 |" in card
    assert '"min_colour_frac"' in card


def test_the_card_claims_no_licence_that_it_does_not_know(make_image_set, drawn, tmp_path):
    images = make_image_set({"a": drawn("disc")[0]})

    build_pool(images, tmp_path / "pool", methods=[BorderSegmenter()])

    card = (tmp_path / "pool/README.md").read_text(encoding="utf-8")
    assert "not stated by the image set" in card
    assert "| licence | not stated" in card


def test_the_card_repeats_the_licence_that_it_was_told(make_image_set, drawn, tmp_path):
    images, pool = make_image_set({"a": drawn("disc")[0]}), tmp_path / "pool"

    build_pool(images, pool, methods=[BorderSegmenter()], licence="CC BY 4.0 | of the\nmakers")
    assert "| licence | CC BY 4.0 \\| of the makers |" in (pool / "README.md").read_text()

    # It is no setting of the cutting: the pool goes on with another.
    build_pool(images, pool, methods=[BorderSegmenter()], licence="CC0")
    assert "| licence | CC0 |" in (pool / "README.md").read_text()

    other = str(tmp_path / "other")
    assert main(["run", str(images), "--out", other, "--licence", "CC BY 4.0", "--quiet"]) == 0
    assert "| licence | CC BY 4.0 |" in (tmp_path / "other/README.md").read_text()
