"""The defects that the study plants: equal shares, the same ones each time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sprite_pool import write_sprite_pool
from train_study.kinds import KINDS, PLANTED_SHARE, kinds_of
from train_study.plant import plant_defects, read_instance, spoilt

PER_CATEGORY = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sprite_pool(tmp_path_factory.mktemp("study") / "drawn", PER_CATEGORY)


def rows_of(pool: Path) -> dict[str, dict[str, Any]]:
    lines = (pool / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["instance_id"]: row for row in map(json.loads, lines)}


def planted_of(pool: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((pool / "planted.json").read_text(encoding="utf-8"))
    return found


def test_both_roles_have_six_kinds_three_subtle_and_two_that_show_the_object() -> None:
    for role in ("development", "held_back"):
        kinds = [KINDS[name] for name in kinds_of(role)]
        assert len(kinds) == 6
        assert sum(kind.is_subtle for kind in kinds) == 3
        assert sum(kind.shows_object for kind in kinds) >= 2
    assert {"wrong_category", "broken_mask", "noise"} <= set(kinds_of("development"))


@pytest.mark.parametrize("role", ["development", "held_back"])
def test_every_kind_is_planted_equally_often_and_every_category_alike(
    drawn: Path, tmp_path: Path, role: Any
) -> None:
    pool = plant_defects(drawn, tmp_path / "planted", role)
    planted, good = planted_of(pool), rows_of(drawn)
    counts = Counter(planted.values())
    assert set(counts) == set(kinds_of(role))
    assert max(counts.values()) - min(counts.values()) <= 1
    spoilt_in = Counter(good[one]["category_id"] for one in planted)
    assert set(spoilt_in.values()) == {round(PLANTED_SHARE * PER_CATEGORY)}
    assert rows_of(pool).keys() == good.keys()


@pytest.mark.parametrize("role", ["development", "held_back"])
def test_what_is_planted_differs_from_the_good_one_and_nothing_else_does(
    drawn: Path, tmp_path: Path, role: Any
) -> None:
    pool = plant_defects(drawn, tmp_path / "planted", role)
    planted, good, now = planted_of(pool), rows_of(drawn), rows_of(pool)
    for instance_id, row in now.items():
        before = good[instance_id]
        is_same_label = row["category_id"] == before["category_id"]
        is_same_picture = np.array_equal(read_instance(pool, row), read_instance(drawn, before))
        kind = planted.get(instance_id)
        assert is_same_label == (kind is None or KINDS[kind].label == "own"), kind
        assert is_same_picture == (kind is None or KINDS[kind].change is None), kind


def test_the_same_seed_plants_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    one, other = (plant_defects(drawn, tmp_path / name, "held_back") for name in ("one", "other"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) > PER_CATEGORY
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.parametrize("kind", [name for name, one in KINDS.items() if one.change is not None])
@pytest.mark.parametrize("shape_hw", [(96, 80), (5, 40), (1, 1)])
def test_an_instance_of_any_shape_can_be_spoilt(kind: str, shape_hw: tuple[int, int]) -> None:
    rgba = np.full((*shape_hw, 4), 255, dtype=np.uint8)
    stranger = np.full((12, 30, 4), (200, 10, 10, 255), dtype=np.uint8)
    found = spoilt(rgba, kind, np.random.default_rng(0), stranger)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 4
    assert found.size


@pytest.mark.parametrize(("kind", "low", "high"), [("holes", 0.6, 0.76), ("lost_end", 0.65, 0.75)])
def test_masks_lose_the_share_that_the_kind_says(kind: str, low: float, high: float) -> None:
    rows, columns = np.indices((90, 90))
    rgba = np.zeros((90, 90, 4), dtype=np.uint8)
    rgba[(rows - 45) ** 2 + (columns - 45) ** 2 < 40**2] = 255
    for seed in range(5):
        stranger = rgba.copy()
        found = spoilt(rgba, kind, np.random.default_rng(seed), stranger)
        assert low <= (found[..., 3] > 127).sum() / (rgba[..., 3] > 127).sum() <= high


def test_an_object_that_is_occluded_keeps_three_fifths_of_its_surface_and_its_whole_mask() -> None:
    rgba = np.full((60, 60, 4), (0, 0, 255, 255), dtype=np.uint8)
    stranger = np.full((60, 60, 4), (255, 0, 0, 255), dtype=np.uint8)
    found = spoilt(rgba, "occluded", np.random.default_rng(3), stranger)
    assert np.array_equal(found[..., 3], rgba[..., 3])
    assert 0.3 <= (found[..., 0] == 255).mean() <= 0.4
