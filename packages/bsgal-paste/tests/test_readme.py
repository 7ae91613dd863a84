from __future__ import annotations

import importlib.util
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    assert BLOCKS
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    has_torchvision = importlib.util.find_spec("torchvision") is not None
    for block in BLOCKS:
        if has_torchvision or "bsgal_paste.torchvision" not in block:
            exec(compile(block, str(README), "exec"), shared)
    if has_torchvision:
        assert len(shared["target"]["instance_ids"]) > 1
    printed = capsys.readouterr().out
    assert "real 100% visible" in printed
    assert "memory-0" in printed
