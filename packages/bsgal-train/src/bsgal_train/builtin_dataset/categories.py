"""Name the built-in categories: LVIS v1 ids and names, their drawings and how often they occur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Frequency = Literal["r", "c", "f"]

MAX_RARE_IMAGES = 3
"""A category in at most this many training images is rare (`r`)."""

MAX_COMMON_IMAGES = 20
"""A category above `MAX_RARE_IMAGES` in at most this many training images is common (`c`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinCategory:
    """Describe one category of the built-in data set.

    Attributes:
        category_id: The category's id in LVIS v1.
        name: The category's name in LVIS v1.
        synset: The WordNet synset LVIS v1 gives it.
        synonyms: Names LVIS v1 lists for it, its own name included.
        definition: What the category means, in one phrase.
        codepoints: The OpenMoji drawings of it, as the hexadecimal names of their files.
        image_count_target: In how many training images it should occur.
    """

    category_id: int
    name: str
    synset: str
    synonyms: tuple[str, ...]
    definition: str
    codepoints: tuple[str, ...]
    image_count_target: int

    @property
    def frequency(self) -> Frequency:
        """Return the frequency group that `image_count_target` puts the category in."""
        if self.image_count_target <= MAX_RARE_IMAGES:
            return "r"
        return "c" if self.image_count_target <= MAX_COMMON_IMAGES else "f"


def _category(
    category_id: int,
    name: str,
    synset: str,
    codepoint: str,
    image_count_target: int,
    definition: str,
    *,
    synonyms: tuple[str, ...] = (),
) -> BuiltinCategory:
    return BuiltinCategory(
        category_id=category_id,
        name=name,
        synset=synset,
        synonyms=(name, *synonyms),
        definition=definition,
        codepoints=(codepoint,),
        image_count_target=image_count_target,
    )


BUILTIN_CATEGORIES: tuple[BuiltinCategory, ...] = (
    _category(
        3,
        "airplane",
        "airplane.n.01",
        "2708",
        60,
        "aircraft with fixed wings, driven by jets or propellers",
        synonyms=("aeroplane",),
    ),
    _category(
        34,
        "backpack",
        "backpack.n.01",
        "1F392",
        15,
        "bag worn on the back by two shoulder straps",
        synonyms=("knapsack", "packsack", "rucksack", "haversack"),
    ),
    _category(
        36,
        "suitcase",
        "bag.n.06",
        "1F9F3",
        1,
        "case with a handle for carrying clothes on a journey",
        synonyms=("baggage", "luggage"),
    ),
    _category(45, "banana", "banana.n.02", "1F34C", 3, "long curved fruit with a yellow peel"),
    _category(
        62,
        "basketball",
        "basketball.n.02",
        "1F3C0",
        40,
        "orange ball with dark seams for throwing through a hoop",
    ),
    _category(76, "bear", "bear.n.01", "1F43B", 12, "large heavy mammal with thick fur"),
    _category(86, "bell", "bell.n.01", "1F514", 11, "hollow metal cup that rings when struck"),
    _category(127, "book", "book.n.01", "1F4D5", 120, "bound pages between two covers"),
    _category(
        138, "bow-tie", "bow_tie.n.01", "1F380", 5, "ribbon tied in a bow", synonyms=("bowtie",)
    ),
    _category(
        154,
        "broccoli",
        "broccoli.n.01",
        "1F966",
        70,
        "green vegetable with a tree-like head of buds",
    ),
    _category(
        173,
        "bus_(vehicle)",
        "bus.n.01",
        "1F68C",
        90,
        "long road vehicle for many passengers",
        synonyms=("autobus", "charabanc", "double-decker", "motorbus", "motorcoach"),
    ),
    _category(
        183, "cake", "cake.n.03", "1F382", 50, "sweet baked dish, often in layers with icing"
    ),
    _category(
        207,
        "car_(automobile)",
        "car.n.01",
        "1F697",
        160,
        "road vehicle with four wheels for a few people",
        synonyms=("auto_(automobile)", "automobile"),
    ),
    _category(217, "carrot", "carrot.n.01", "1F955", 16, "orange root vegetable, thick at one end"),
    _category(
        271,
        "clock",
        "clock.n.01",
        "1F570",
        110,
        "device whose hands show the time of day",
        synonyms=("timepiece", "timekeeper"),
    ),
    _category(334, "crown", "crown.n.04", "1F451", 2, "golden head-dress of a monarch"),
    _category(
        345, "trophy_cup", "cup.n.08", "1F3C6", 1, "metal cup with handles given to a winner"
    ),
    _category(
        387,
        "doughnut",
        "doughnut.n.02",
        "1F369",
        2,
        "ring of fried sweet dough",
        synonyms=("donut",),
    ),
    _category(
        419,
        "eggplant",
        "eggplant.n.01",
        "1F346",
        9,
        "purple vegetable with a smooth skin and a green cap",
        synonyms=("aubergine",),
    ),
    _category(422, "elephant", "elephant.n.01", "1F418", 10, "very large grey mammal with a trunk"),
    _category(
        447, "fish", "fish.n.01", "1F41F", 130, "animal with fins and gills that lives in water"
    ),
    _category(
        529,
        "hamburger",
        "hamburger.n.01",
        "1F354",
        35,
        "meat patty in a round bun",
        synonyms=("beefburger", "burger"),
    ),
    _category(
        574, "hourglass", "hourglass.n.01", "231B", 2, "two glass bulbs between which sand runs"
    ),
    _category(605, "key", "key.n.01", "1F511", 4, "notched piece of metal that opens a lock"),
    _category(611, "kite", "kite.n.03", "1FA81", 1, "light frame with a covering, flown on a line"),
    _category(
        623,
        "ladybug",
        "ladybug.n.01",
        "1F41E",
        7,
        "small round red beetle with black spots",
        synonyms=("ladybeetle", "ladybird_beetle"),
    ),
    _category(
        645, "lightbulb", "light_bulb.n.01", "1F4A1", 14, "glass bulb that gives electric light"
    ),
    _category(709, "mushroom", "mushroom.n.02", "1F344", 1, "fungus with a cap on a stalk"),
    _category(
        735, "orange_(fruit)", "orange.n.01", "1F34A", 20, "round citrus fruit of orange colour"
    ),
    _category(
        786, "penguin", "penguin.n.01", "1F427", 3, "black and white sea bird that cannot fly"
    ),
    _category(
        806,
        "pineapple",
        "pineapple.n.02",
        "1F34D",
        18,
        "large tropical fruit with a tuft of stiff leaves",
    ),
    _category(
        816, "pizza", "pizza.n.01", "1F355", 80, "flat bread baked with tomato, cheese and toppings"
    ),
    _category(912, "sandwich", "sandwich.n.01", "1F96A", 8, "filling between slices of bread"),
    _category(
        1019,
        "stop_sign",
        "stop_sign.n.01",
        "1F6D1",
        3,
        "red eight-sided sign that orders vehicles to stop",
    ),
    _category(
        1025, "strawberry", "strawberry.n.01", "1F353", 55, "red fruit with small seeds on its skin"
    ),
    _category(1071, "teddy_bear", "teddy.n.01", "1F9F8", 100, "soft toy in the shape of a bear"),
    _category(
        1072,
        "telephone",
        "telephone.n.01",
        "260E",
        25,
        "apparatus for talking over a distance",
        synonyms=("phone", "telephone_set"),
    ),
    _category(
        1112,
        "traffic_light",
        "traffic_light.n.01",
        "1F6A6",
        6,
        "red, amber and green signal that directs traffic",
    ),
    _category(
        1133,
        "umbrella",
        "umbrella.n.01",
        "2602",
        140,
        "folding canopy on a stick that keeps off rain",
    ),
    _category(
        1172,
        "watermelon",
        "watermelon.n.02",
        "1F349",
        30,
        "large fruit with a green rind and red flesh",
    ),
)
"""The built-in categories, in the order of their LVIS v1 ids."""
