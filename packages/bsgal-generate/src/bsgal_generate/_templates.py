"""Prompt templates, and the one place where they are filled in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter

from ._categories import Category
from .errors import PromptError

_FIELDS = frozenset({"name", "noun", "definition"})
_PROMPT_ID = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt with a gap for the category.

    Attributes:
        prompt_id: Short path-safe name (lower-case letters, digits, underscores); it becomes part
            of every sample's id and of its seed.
        text: The prompt. `{name}` is the category's name in plain words with its sense in
            parentheses ("salmon (fish)"), `{noun}` the name without it ("salmon"), `{definition}`
            the gloss.
    """

    prompt_id: str
    text: str

    def __post_init__(self) -> None:
        if not _PROMPT_ID.fullmatch(self.prompt_id):
            raise PromptError(
                "`prompt_id` must consist of lower-case letters, digits and underscores, got "
                f"{self.prompt_id!r}"
            )
        try:
            fields = {field for _, field, _, _ in Formatter().parse(self.text) if field is not None}
        except ValueError as error:
            raise PromptError(f"template {self.text!r} cannot be parsed: {error}") from error
        if unknown := fields - _FIELDS:
            raise PromptError(
                f"template {self.text!r} has the unknown gap {{{min(unknown)}}}; known are "
                "{name}, {noun} and {definition}"
            )
        if not fields & {"name", "noun"}:
            raise PromptError(f"template {self.text!r} must contain {{name}} or {{noun}}")

    def fill(self, category: Category) -> str:
        """Return the prompt for one category.

        Raises:
            PromptError: The template asks for a definition and the category has none.
        """
        if "{definition}" in self.text and not category.definition:
            raise PromptError(
                f"template {self.prompt_id!r} needs a definition, and category "
                f"{category.category_id} ({category.name!r}) has none; give the categories as JSON "
                'with "def", or choose another template'
            )
        return self.text.format(
            name=category.readable_name, noun=category.noun, definition=category.definition
        )


TEMPLATES: dict[str, PromptTemplate] = {
    template.prompt_id: template
    for template in (
        # BSGAL, appendix A.2, which follows X-Paste: https://github.com/yoctta/XPaste
        PromptTemplate("single", "a photo of a single {name}"),
        # The same sentence without the sense, for text encoders that stumble over parentheses.
        PromptTemplate("single_noun", "a photo of a single {noun}"),
        # X-Paste's sentence on a background that is easy to cut away.
        PromptTemplate("single_plain", "a photo of a single {name}, on a plain background"),
        # DiverGen: https://github.com/aim-uofa/DiverGen
        PromptTemplate(
            "divergen", "a photo of a single {name}, {definition}, in a white background"
        ),
    )
}
"""The prompt templates that come with the package, by `prompt_id`."""


def fill_for_all(template: PromptTemplate, categories: Sequence[Category]) -> dict[int, str]:
    """Fill a template for every category so that no two categories share a prompt.

    Categories that would share one ("salmon" for the fish and for the food, if the template uses
    `{noun}`) get their sense back, and if they are still alike, their definition.

    Args:
        template: The template to fill.
        categories: All categories of the plan; distinctness is decided over the whole list.

    Returns:
        The prompt of each category id.

    Raises:
        PromptError: Some categories cannot be told apart, or lack a definition the template needs.
    """
    prompts = {category.category_id: template.fill(category) for category in categories}
    with_sense = replace(template, text=template.text.replace("{noun}", "{name}"))
    with_definition = replace(with_sense, text=with_sense.text + ", {definition}")
    for clearer in (with_sense, with_definition):
        for alike in _groups_with_equal_prompt(prompts, categories):
            prompts |= {
                category.category_id: clearer.fill(category)
                for category in alike
                if category.definition or clearer is with_sense
            }
    for alike in _groups_with_equal_prompt(prompts, categories):
        listed = " and ".join(f"{c.category_id} ({c.name!r})" for c in alike)
        raise PromptError(
            f"categories {listed} would share the prompt {prompts[alike[0].category_id]!r}; give "
            "them different names or definitions"
        )
    return prompts


def _groups_with_equal_prompt(
    prompts: dict[int, str], categories: Sequence[Category]
) -> list[list[Category]]:
    groups: dict[str, list[Category]] = defaultdict(list)
    for category in categories:
        groups[prompts[category.category_id].casefold()].append(category)
    return [group for group in groups.values() if len(group) > 1]
