from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1 images: 1 kept (1 of 1 categories), 0 dropped"
    assert second.startswith("RGBA (8")
