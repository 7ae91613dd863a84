"""The list of images to make, each with its own prompt and seed, before any model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ._categories import Category, Kind, check_categories
from ._prompt_files import check_prompts, prompt_id_of
from ._templates import TEMPLATES, PromptTemplate, fill_for_all
from .errors import PromptError


def derive_seed(*parts: int | str) -> int:
    """Return a seed that depends on the parts alone, the same on every machine and Python version.

    Args:
        parts: Integers and strings; their order and their boundaries matter.

    Returns:
        An integer in [0, 2**53), so that any JSON reader keeps every digit of it.
    """
    text = "".join(f"{len(str(part))}:{part}," for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to make.

    Attributes:
        sample_id: Unique in the plan and safe as a file name.
        category_id: The category's id.
        category_name: The category's name as the data set spells it.
        prompt_id: Which template or prompt line was used.
        prompt: The text that is given to the pipeline.
        negative_prompt: The text to steer away from, or None.
        seed: Seed of this image's own random generator.
        attempt: 0 for the first draw; each redraw counts up and has another seed.
        kind: What the image shows: an object of the category, or a scene without one.
    """

    sample_id: str
    category_id: int
    category_name: str
    prompt_id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    attempt: int = 0
    kind: Kind = "object"

    def redrawn(self, attempt: int) -> Sample:
        """Return the same sample for a further attempt, with the seed of that attempt.

        Args:
            attempt: Which attempt, counted from 0; must be called on the sample of attempt 0.
        """
        if attempt == 0:
            return self
        return replace(self, seed=derive_seed(self.seed, "redraw", attempt), attempt=attempt)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationPlan:
    """Categories x prompts x images, enumerated in a fixed order.

    A sample's seed is derived from the plan's seed, the category id, the prompt id and the sample's
    index under that prompt. It does not depend on the other categories, on the number of images or
    on batches, so one image can be made again alone, and a larger plan contains the smaller one.

    Attributes:
        categories: What to draw; sorted by id on construction.
        images_per_category: How many images of each category, one number or one by category id;
            they take turns over its prompts.
        seed: Seed of the whole run.
        templates: The prompts to use.
        prompts: Prompts of single categories by category id, which replace the templates there.
        negative_prompt: What every image should steer away from, or None.
    """

    categories: tuple[Category, ...]
    images_per_category: int | Mapping[int, int]
    seed: int = 0
    templates: tuple[PromptTemplate, ...] = (TEMPLATES["single"],)
    prompts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    negative_prompt: str | None = None
    _prompts: dict[int, tuple[tuple[str, str], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise TypeError(f"`seed` must be an int, got {self.seed!r}")
        if not self.templates:
            raise PromptError("`templates` must hold at least one template")
        prompt_ids = [template.prompt_id for template in self.templates]
        if len(set(prompt_ids)) < len(prompt_ids):
            raise PromptError(f"`templates` must have different prompt ids, got {prompt_ids}")
        ordered = check_categories(self.categories, where="`categories`")
        _check_counts(self.images_per_category, ordered)
        own = {category_id: tuple(lines) for category_id, lines in self.prompts.items()}
        check_prompts(own, ordered)
        templated = [category for category in ordered if category.category_id not in own]
        filled = {t.prompt_id: fill_for_all(t, templated) for t in self.templates}
        prompts = {
            category_id: tuple((prompt_id_of(line), line) for line in lines)
            for category_id, lines in own.items()
        }
        for category in templated:
            category_id = category.category_id
            prompts[category_id] = tuple((p, filled[p][category_id]) for p in prompt_ids)
        object.__setattr__(self, "categories", ordered)
        object.__setattr__(self, "templates", tuple(self.templates))
        object.__setattr__(self, "prompts", own)
        object.__setattr__(self, "_prompts", prompts)

    def __len__(self) -> int:
        return sum(self.count_of(category.category_id) for category in self.categories)

    def __iter__(self) -> Iterator[Sample]:
        return self.beyond(0)

    def count_of(self, category_id: int) -> int:
        """Return how many images of a category are planned."""
        return _count(self.images_per_category, category_id)

    def beyond(self, images_per_category: int | Mapping[int, int]) -> Iterator[Sample]:
        """Yield the samples that a plan with so many images per category would lack."""
        for category in self.categories:
            category_id = category.category_id
            prompts = self._prompts[category_id]
            first = _count(images_per_category, category_id)
            for i in range(first, self.count_of(category_id)):
                index, which = divmod(i, len(prompts))
                yield self._sample(category, *prompts[which], index)

    def _sample(self, category: Category, prompt_id: str, prompt: str, index: int) -> Sample:
        return Sample(
            sample_id=f"{category.category_id}-{prompt_id}-{index:05d}",
            category_id=category.category_id,
            category_name=category.name,
            prompt_id=prompt_id,
            prompt=prompt,
            negative_prompt=self.negative_prompt,
            seed=derive_seed(self.seed, category.category_id, prompt_id, index),
            kind=category.kind,
        )

    def prompts_of(self, category_id: int) -> dict[str, str]:
        """Return the prompts of one category, keyed by prompt id."""
        return dict(self._prompts[category_id])

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON values, complete enough to tell whether two plans agree."""
        counts = self.counts()
        return {
            "seed": self.seed,
            "images_per_category": (
                counts if isinstance(counts, int) else {str(i): n for i, n in counts.items()}
            ),
            "negative_prompt": self.negative_prompt,
            "categories": {
                str(category.category_id): {
                    "name": category.name,
                    "prompts": self.prompts_of(category.category_id),
                }
                for category in self.categories
            },
        }

    def counts(self) -> int | dict[int, int]:
        """Return the number of images per category, one or one by category id."""
        counts = self.images_per_category
        return counts if isinstance(counts, int) else dict(counts)


def _count(images_per_category: int | Mapping[int, int], category_id: int) -> int:
    if isinstance(images_per_category, int):
        return images_per_category
    return images_per_category[category_id]


def _check_counts(counts: object, categories: Sequence[Category]) -> None:
    if isinstance(counts, Mapping):
        ids = [category.category_id for category in categories]
        if set(counts) != set(ids) or any(type(n) is not int or n < 0 for n in counts.values()):
            raise ValueError(
                "`images_per_category` must give every category id of the plan, and no other, an "
                f"int of at least 0, got {counts!r}"
            )
    elif type(counts) is not int or counts < 1:
        raise ValueError(f"`images_per_category` must be an int of at least 1, got {counts!r}")
