from __future__ import annotations

import re
from pathlib import Path

import pytest

from bsgal_generate import tiny_pipeline_path

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert BLOCKS


@pytest.mark.skipif(
    not (tiny_pipeline_path() / "model_index.json").is_file(),
    reason="the weights of the built-in pipeline are not in this tree",
)
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "readme"}
    for block in BLOCKS:
        exec(block, scope)
    assert list(tmp_path.rglob("*.png"))
