"""Prompts written line by line for single categories, as people or language models write them."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ._categories import Category
from ._schema import is_name, shown
from .errors import PromptError


def load_prompts(folder: str | Path, categories: Sequence[Category]) -> dict[int, tuple[str, ...]]:
    """Read a folder of prompt files, one `<category_id>.txt` per category and one prompt a line.

    Blank lines and lines that start with `#` are skipped. Categories without a file are left out.

    Args:
        folder: The folder.
        categories: The categories of the plan.

    Returns:
        The prompts by category id, for `GenerationPlan(prompts=...)`.

    Raises:
        PromptError: The folder is missing, a file cannot be read or holds no prompt, or a file
            belongs to none of the categories.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PromptError(f"the prompt folder {folder} does not exist")
    known = {str(category.category_id) for category in categories}
    prompts: dict[int, tuple[str, ...]] = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in known:
            raise PromptError(
                f"{path}: the file's name must be the id of one of the plan's categories, as in "
                f"{min(known, default='1')}.txt"
            )
        prompts[int(path.stem)] = read_prompt_file(path)
    if not prompts:
        raise PromptError(f"{folder} holds no prompt file; they are named <category_id>.txt")
    return prompts


def read_prompt_file(path: Path) -> tuple[str, ...]:
    """Return the prompts of one file, one a line, without blank lines and comments.

    Raises:
        PromptError: The file cannot be read, holds no prompt, or one twice.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        lines = [line.strip() for line in content.decode("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        if not is_name(line):
            raise PromptError(f"{path}, line {number}: control characters in {shown(line)}")
        if line in seen:
            raise PromptError(
                f"{path}, line {number}: {shown(line)} is already line {seen[line]}; every prompt "
                "must be given once"
            )
        seen[line] = number
    if not seen:
        raise PromptError(f"{path} holds no prompt")
    return tuple(seen)


def prompt_id_of(prompt: str) -> str:
    """Return an id that depends on the prompt's text alone.

    Lines may so be added, removed or moved in a file without changing the images of the others.
    """
    return f"p{hashlib.sha256(prompt.encode()).hexdigest()[:10]}"


def check_prompts(prompts: dict[int, tuple[str, ...]], categories: Sequence[Category]) -> None:
    """Raise if prompts are empty, repeated, shared by two categories, or of an unknown category."""
    known = {category.category_id for category in categories}
    owner: dict[str, int] = {}
    for category_id, lines in prompts.items():
        if category_id not in known:
            raise PromptError(f"`prompts` has category id {category_id}, which is not in the plan")
        if not lines or not all(isinstance(line, str) and line.strip() for line in lines):
            raise PromptError(f"`prompts` of category {category_id} must be non-empty strings")
        for line in lines:
            if line in owner:
                raise PromptError(
                    f"the prompt {line!r} of category {category_id} is already one of category "
                    f"{owner[line]}; every prompt must be given once"
                )
            owner[line] = category_id
