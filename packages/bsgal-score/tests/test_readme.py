from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_run(code, tmp_path, monkeypatch):
    if "torchvision" in code:
        pytest.importorskip("torchvision", reason="needs the extra `examples`")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_a_detector_and_a_classifier_are_among_the_examples():
    assert any("torchvision" in code for code in BLOCKS)
    assert any("accepted" in code for code in BLOCKS)
