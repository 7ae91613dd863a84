from __future__ import annotations

import math

import pytest
import torch

from bsgal_train.detector.centernet.locations import Locations
from bsgal_train.detector.centernet.targets import HeatmapShape, ImageTargets, image_targets

TWO_LEVELS = HeatmapShape(size_ranges_px=((0, 40), (30, 1000)))


def locations(image_px: int = 64) -> Locations:
    return Locations.of([(image_px // 8,) * 2, (image_px // 16,) * 2], (8, 16))


def targets(*boxes: tuple[float, ...], image_px: int = 64) -> tuple[Locations, ImageTargets]:
    places = locations(image_px)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return places, image_targets(places, tensor, TWO_LEVELS)


def at(places: Locations, x: float, y: float, stride: int = 8) -> int:
    same = (places.xy == torch.tensor([x, y])).all(1) & (places.stride == stride)
    return int(torch.nonzero(same))


def test_locations_are_the_centres_of_their_cells() -> None:
    places = Locations.of([(2, 3), (1, 2)], (8, 16))

    assert places.xy.tolist() == [
        [4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8],
    ]  # fmt: skip
    assert places.stride.tolist() == [8.0] * 6 + [16.0] * 2
    assert places.index_of(torch.tensor([[19.9, 15.9], [0.0, 0.0]]), 0).tolist() == [5, 0]
    assert places.index_of(torch.tensor([[31.0, 3.0]]), 1).tolist() == [7]


def test_heat_falls_with_the_distance_to_the_centre() -> None:
    # Centre (28, 24); its cell is the one around (28, 28). 2 (1/9)^2 24 x 16 = 9.5, so the least
    # radius, 4 px, holds.
    places, found = targets((16, 16, 40, 32))

    assert float(found.heat[at(places, 28, 28)]) == 1.0
    assert float(found.heat[at(places, 28, 20)]) == pytest.approx(math.exp(-16 / 16))
    assert float(found.heat[at(places, 20, 28)]) == pytest.approx(math.exp(-(64 + 16) / 16))
    # exp(-(24^2 + 4^2) / 16) is below the least heat.
    assert float(found.heat[at(places, 4, 28)]) == 0.0
    assert found.heat_object[at(places, 28, 20)] == 0
    assert found.heat_object[at(places, 4, 28)] == -1


def test_heat_of_a_large_object_spreads_with_its_area() -> None:
    places, found = targets((8, 8, 120, 104), image_px=128)

    # Centre (64, 56), its cell around (68, 60).
    radius2 = 2 * (0.2 / 1.8) ** 2 * 112 * 96
    assert radius2 > 16
    place = at(places, 84, 60)
    assert float(found.heat[place]) == pytest.approx(math.exp(-(20**2 + 4**2) / radius2))


def test_boxes_are_predicted_around_the_centre_and_inside_the_object() -> None:
    places, found = targets((16, 16, 40, 32))

    # Of the nine cells around (28, 28) the lowest row, y = 36, is outside.
    assert {tuple(xy) for xy in places.xy[found.box_locations].tolist()} == {
        (x, y) for x in (20, 28, 36) for y in (20, 28)
    }
    middle = found.box_locations.tolist().index(at(places, 28, 28))
    assert found.box_ltrb[middle].tolist() == [12 / 8, 12 / 8, 12 / 8, 4 / 8]


@pytest.mark.parametrize(
    ("side", "levels"), [(40.0, [0]), (50.0, [0, 1]), (60.0, [1])], ids=["small", "both", "large"]
)
def test_size_decides_which_levels_are_positive(side: float, levels: list[int]) -> None:
    # Half diagonals 28.3, 35.4 and 42.4 px; the ranges are 0-40 and 30-1000.
    places, found = targets((2, 2, 2 + side, 2 + side))

    assert places.level[found.centres].tolist() == levels
    assert set(places.level[found.box_locations].tolist()) == set(levels)
    # Heat is on both levels all the same, so that the other level is not punished for seeing it.
    assert {int(level) for level in places.level[found.heat > 0.1]} == {0, 1}


def test_an_object_with_more_heat_wins_a_contested_location() -> None:
    # The second covers the first; both centres are in the cell around (28, 28).
    places, found = targets((16, 16, 40, 40), (23, 23, 32, 32))

    assert found.centres.tolist() == [at(places, 28, 28)] * 2
    assert found.centre_objects.tolist() == [0, 1]
    # (20, 20) is inside the first only.
    owner = dict(zip(found.box_locations.tolist(), found.box_objects.tolist(), strict=True))
    assert owner[at(places, 20, 20)] == 0


def test_targets_agree_with_a_search_by_hand() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(6, 2, generator=generator) * 90
    boxes = torch.cat([corners, corners + 5 + torch.rand(6, 2, generator=generator) * 30], dim=1)
    places = locations(128)

    found = image_targets(places, boxes, TWO_LEVELS)

    owner = dict(zip(found.box_locations.tolist(), found.box_objects.tolist(), strict=True))
    for place in range(len(places)):
        (x, y), stride = places.xy[place].tolist(), float(places.stride[place])
        heats, owners = [], []
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            middle = (left + right) / 2, (top + bottom) / 2
            cell = [
                math.floor(m / stride) - math.floor(p / stride)
                for m, p in zip(middle, (x, y), strict=True)
            ]
            distance2 = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 if any(cell) else 0.0
            radius2 = max(2 / 81 * (right - left) * (bottom - top), 16)
            heats.append(math.exp(-distance2 / radius2))
            half = math.hypot(right - left, bottom - top) / 2
            low, high = TWO_LEVELS.size_ranges_px[int(places.level[place])]
            inside = left < x < right and top < y < bottom
            if max(map(abs, cell)) <= 1 and inside and low <= half <= high:
                owners.append((heats[-1], number))
        expected = max(heats) if max(heats) >= 1e-4 else 0.0
        assert float(found.heat[place]) == pytest.approx(expected, rel=1e-4)
        assert owner.get(place) == (max(owners)[1] if owners else None)


def test_an_image_without_objects_is_cold() -> None:
    _, found = targets()

    assert float(found.heat.max()) == 0.0
    assert len(found.centres) == len(found.box_locations) == 0


def test_a_range_for_every_level_is_needed() -> None:
    with pytest.raises(ValueError, match="5 ranges for 2 levels"):
        image_targets(locations(), torch.zeros(0, 4), HeatmapShape())
