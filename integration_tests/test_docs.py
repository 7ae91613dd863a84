"""Every code block of the documentation site runs, page by page, in an empty folder.

Blocks marked `python` share one namespace per page; those marked `sh` are run by bash with the
environment's commands in reach. A comment that begins with `<!-- test` holds Python that makes what
the page's reader already has, and is not shown. Everything else that is fenced must be marked
`text`, `toml` or `json`: it is shown, not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "reference")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>\S*)[^\n]*\n(?P<code>.*?)^(?P=indent)```|"
    r"^<!-- test\n(?P<setup>.*?)^-->",
    re.MULTILINE | re.DOTALL,
)
SHOWN = {"text", "toml", "json"}


def test_there_are_pages() -> None:
    assert len(PAGES) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", commands + os.pathsep + os.environ["PATH"])
    scope: dict[str, object] = {"__name__": "page"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        indent, kind = block["indent"], block["kind"]
        code = block["setup"] or re.sub(f"^{indent}", "", block["code"], flags=re.MULTILINE)
        if block["setup"] or kind == "python":
            # Line numbers of errors are those of the page.
            exec(compile("\n" * line + code, str(page), "exec"), scope)
        elif kind == "sh":
            command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout[-2000:] + done.stderr[-4000:]
            assert done.returncode == 0, f"{page}:{line}\n{said}"
        else:
            assert kind in SHOWN, f"{page}:{line} is marked {kind!r}"
