from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bsgal_paste._manifest import ManifestAppender, parse_json, read_rows
from bsgal_paste.errors import PoolFormatError


def rows_of(path) -> list[dict]:
    return [row for _, row in read_rows(path, PoolFormatError)]


@pytest.mark.parametrize(
    ("end", "rows", "mended"),
    [
        ("", [{"a": 1}], '{"a": 1}\n'),
        ('{"b": 2}', [{"a": 1}, {"b": 2}], '{"a": 1}\n{"b": 2}\n'),
        ('{"b": ', [{"a": 1}], '{"a": 1}\n'),
        ("12", [{"a": 1}], '{"a": 1}\n'),
        ("\udcff", [{"a": 1}], '{"a": 1}\n'),
    ],
)
def test_a_torn_last_line_is_ignored_by_readers_and_mended_by_the_writer(
    tmp_path, end, rows, mended
):
    path = tmp_path / "manifest.jsonl"
    content = ('{"a": 1}\n' + end).encode(errors="surrogateescape")
    path.write_bytes(content)
    assert rows_of(path) == rows
    assert path.read_bytes() == content, "reading changes nothing"
    with ManifestAppender(path) as appender:
        assert path.read_text() == mended
        appender.append({"c": 3})
    assert rows_of(path) == [*rows, {"c": 3}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", "line 2: not valid JSON"),
        (b"[1]\n", "line 2: must be a JSON object"),
        (b'{"a": NaN}\n', "line 2: not valid JSON: NaN is no number"),
        (b'{"a": "\xff"}\n', "line 2: not valid JSON: 'utf-8' codec"),
        (b'\xef\xbb\xbf{"a": 1}\n', "line 2: not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "line 2: not valid JSON"),
    ],
)
def test_any_other_line_that_is_no_object_is_named(tmp_path, line, message):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"{}\n" + line + b"{}\n")
    with pytest.raises(PoolFormatError, match=message):
        rows_of(path)


def test_json_in_another_encoding_is_refused():
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_json('{"a": 1}'.encode("utf-16"))


def test_an_empty_manifest_has_no_rows(tmp_path):
    (tmp_path / "manifest.jsonl").touch()
    assert rows_of(tmp_path / "manifest.jsonl") == []


WRITER = """
import sys, time
from pathlib import Path
from bsgal_paste._manifest import ManifestAppender
with ManifestAppender(Path(sys.argv[1])) as appender:
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed by a signal")
def test_there_is_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout.readline() == "writing\n"
            with pytest.raises(ValueError, match="is being written by another process"):
                ManifestAppender(path)
        finally:
            os.kill(first.pid, signal.SIGKILL)
    with ManifestAppender(path) as appender:
        appender.append({"a": 1})
    assert len(rows_of(path)) == 1
