from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_what_reads_and_writes_settings_is_the_same_in_every_package() -> None:
    files = sorted(ROOT.glob("packages/*/src/*/_settings_file.py"))
    assert len(files) == 3
    assert len({file.read_bytes() for file in files}) == 1
