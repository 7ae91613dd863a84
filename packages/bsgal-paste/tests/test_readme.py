from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    assert BLOCKS
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "real 100% visible" in printed
    assert "memory-0" in printed
