"""Every relative link of the repository's Markdown leads to a file, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(
            page
            for name in ("benchmarks", "docs", "models")
            for page in (ROOT / name).rglob("*.md")
        ),
        *ROOT.glob("packages/*/*.md"),
        *ROOT.glob("packages/*/src/**/*.md"),
    ]
)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return what links may name of a page: its headings, as sites and GitHub spell them."""
    found: set[str] = set()
    for heading in HEADING.findall(re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        # GitHub keeps every hyphen, the site's builder joins them.
        found |= {slug, re.sub(r"-+", "-", slug)}
    return found


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    broken = []
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for inline, reference in LINK.findall(text):
        link = inline or reference
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (
            anchor
            and target.suffix == ".md"
            and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_relative_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One, and `two`\n\n```\n# none\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#one-and-two) [c](#here) [d](https://example.org/x)\n"
        "`[e](x)`\n"
        "[f](gone.md) [g](other.md#none)\n[h](#gone)\n\n[i]: gone.png\n"
    )

    assert broken_links(page) == ["gone.md", "other.md#none", "#gone", "gone.png"]


def test_there_are_pages_of_every_kind() -> None:
    kinds = {page.relative_to(ROOT).parts[0] for page in PAGES}

    assert {"README.md", "docs", "models", "packages"} <= kinds
