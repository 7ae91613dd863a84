from __future__ import annotations

import json

import numpy as np

from bsgal_mask import BorderSegmenter, build_pool


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
    assert "| licence | not known" in card
