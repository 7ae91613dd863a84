"""A category's name as a text model should read it."""

from __future__ import annotations


def text_of(template: str, category_name: str) -> str:
    """Put a category's name, underscores as spaces, into a template.

    >>> text_of("a photo of {}", "ball_(toy)")
    'a photo of ball (toy)'
    """
    return template.format(" ".join(category_name.replace("_", " ").split()))


def check_template(template: str) -> None:
    """Raise `ValueError` unless a template takes exactly one name."""
    try:
        first, second = (template.format(name) for name in ("\0", "\1"))
    except (IndexError, KeyError, ValueError):
        first = second = ""
    if first == second or "\0" not in first:
        raise ValueError(
            f"`template` must hold {{}} once for the category's name, got {template!r}"
        )
