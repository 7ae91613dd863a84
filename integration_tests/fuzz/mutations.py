"""One random change to one file, and whether a reader may take the result at its word."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

# Fields that may be null, and numbers that may be negative or of any size.
_NULLABLE = frozenset(
    {
        "negative_prompt", "guidance_scale", "reason", "agreement", "clip_score",
        "clip_similarity", "revision", "segmentation",
    }
)  # fmt: skip
_SIGNED = frozenset({"bbox", "segmentation", "guidance_scale", "clip_score", "clip_similarity"})
_UNBOUNDED = frozenset({"guidance_scale", "blank_std"})
_MAX_INT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Mutation:
    """What was done.

    Attributes:
        what: In words.
        is_legal: Whether the content is such that a reader may accept it and give what it says;
            otherwise it must refuse it, or give what the file said before.
    """

    what: str
    is_legal: bool


def mutate(path: Path, rng: random.Random) -> Mutation:
    """Change a file at random, of which kind its name tells."""
    if rng.random() < 0.03:
        path.unlink()
        # A category without a prompt file has none, and an index is made anew.
        return Mutation("delete the file", path.parent.name == "prompts")
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        return _mutate_values(path, rng)
    if path.suffix in (".png", ".jpg"):
        return _mutate_picture(path, rng)
    return _mutate_bytes(path, rng)


def _mutate_values(path: Path, rng: random.Random) -> Mutation:
    """Change one value of a JSON document, or of the lines of one."""
    text = path.read_text(encoding="utf-8")
    is_lines = path.suffix == ".jsonl"
    document = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)
    # Lines first, then fields: else long lists would get all the changes.
    places = list(_places(document, ()))
    by_depth = rng.choice(sorted({len(at) for _, _, at in places}))
    holder, key, at = rng.choice([place for place in places if len(place[2]) == by_depth])
    changes = [_delete, _duplicate, _retype, _range, _nonfinite, _nest, _edit, _nullify]
    what, is_legal = rng.choice(changes)(holder, key, at, rng)
    lines = document if is_lines else [document]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n" * is_lines
    content = content.replace(f'"{_DEEP}"', "[" * 50_000 + "]" * 50_000)
    content = content.replace(f'"{_OVERFLOW}"', "1e999")
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    return Mutation(f"{'.'.join(map(str, at))}: {what}", is_legal)


_DEEP, _OVERFLOW = "<deep>", "<overflow>"
_Place = tuple[Any, Any, tuple[Any, ...]]


def _places(value: Any, at: tuple[Any, ...]) -> Iterator[_Place]:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key, (*at, key)
            yield from _places(value[key], (*at, key))


def _delete(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    del holder[key]
    return "delete", True


def _duplicate(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    if isinstance(holder, list):
        holder.insert(rng.randint(0, len(holder)), holder[key])
        return "duplicate", True
    holder[f"{key}_"] = holder[key]
    return "duplicate under another name", True


def _retype(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    old = holder[key]
    values = ["text", "", 7, 1.5, True, [], {}, [old], {"a": old}, "\ud800", str(old), "\0"]
    others = [value for value in values if _kind(value) != _kind(old) or value in ("\0", "\ud800")]
    holder[key] = rng.choice(others)
    # A coordinate may be any number.
    is_number = type(old) in (int, float) and holder[key] == 1.5 and bool(_SIGNED & {*at})
    return f"from {_kind(old)} to {holder[key]!r}"[:60], is_number


def _kind(value: Any) -> str:
    return "number" if type(value) in (int, float) and value != 1.5 else type(value).__name__


def _range(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    value = rng.choice([-1, -(2**31), 2**31, 2**53 + 1, 2**63, 2**70, 10**400, 1e30, -0.5, 0])
    if type(holder[key]) not in (int, float):
        return _retype(holder, key, at, rng)
    is_integral = type(value) is int or type(holder[key]) is float or bool(_SIGNED & {*at})
    holder[key] = value
    in_range = 0 <= value <= _MAX_INT or (_SIGNED & {*at} and abs(value) < 2**62)
    return f"{str(value)[:30]}", bool((in_range and is_integral) or _UNBOUNDED & {*at})


def _nonfinite(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    holder[key] = rng.choice([float("nan"), float("inf"), -float("inf"), _OVERFLOW])
    return f"{holder[key]}", False


def _nest(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    holder[key] = _DEEP
    return "50,000 lists in one another", False


def _edit(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    old = holder[key]
    if isinstance(old, str):
        holder[key] = rng.choice([old + "x", old[:-1], "é" + old, "a" * 10_000, "../" + old, ""])
    elif type(old) in (int, float):
        holder[key] = old + rng.choice([1, 2])
    elif isinstance(old, list):
        old.reverse()
    else:
        return _retype(holder, key, at, rng)
    return f"another value, {str(holder[key])[:30]!r}", True


def _nullify(holder: Any, key: Any, at: tuple[Any, ...], rng: random.Random) -> tuple[str, bool]:
    holder[key] = None
    return "null", key in _NULLABLE


def _mutate_bytes(path: Path, rng: random.Random) -> Mutation:
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    position = rng.randrange(len(content))
    flipped = bytes([content[position] ^ (1 << rng.randrange(8))])
    few = rng.randint(1, 40)
    changes: list[tuple[str, Callable[[], bytes]]] = [
        ("truncate", lambda: content[:position]),
        ("flip a bit", lambda: content[:position] + flipped + content[position + 1 :]),
        ("byte order mark", lambda: b"\xef\xbb\xbf" + content),
        ("zeros", lambda: content[:position] + bytes(few) + content[position + few :]),
        ("zeros at the end", lambda: content + bytes(few)),
        ("no UTF-8", lambda: content[:position] + b"\xff\xfe" + content[position:]),
        ("drop a line", lambda: content.replace(rng.choice(lines), b"", 1)),
        ("repeat a line", lambda: content + rng.choice(lines)),
        ("swap lines", lambda: b"".join(rng.sample(lines, len(lines)))),
        ("empty", lambda: b""),
        ("empty line", lambda: content + b"\n"),
        ("another line", lambda: content + b"[]\n"),
    ]
    what, change = rng.choice(changes)
    path.write_bytes(change())
    # Whether what is left says something is for the plain reader to find out.
    return Mutation(f"{what} at byte {position} of {len(content)}", True)


def _mutate_picture(path: Path, rng: random.Random) -> Mutation:
    content = path.read_bytes()
    position = rng.randrange(len(content))
    flipped = bytes([content[position] ^ (1 << rng.randrange(8))])
    with Image.open(io.BytesIO(content)) as opened:
        picture, kind = opened.copy(), opened.format or "PNG"
    changes: list[tuple[str, Callable[[], bytes], bool]] = [
        ("truncate", lambda: content[:position], False),
        ("flip a bit", lambda: content[:position] + flipped + content[position + 1 :], True),
        ("empty", lambda: b"", False),
        ("zeros", lambda: bytes(len(content)), False),
        ("text", lambda: b"not a picture", False),
        ("another size", lambda: _saved(picture.resize((9, 7)), kind), True),
        ("16 bits", lambda: _saved(picture.convert("I;16"), "PNG"), False),
        ("another format", lambda: _saved(picture.convert("RGB"), "BMP"), True),
        ("header of 1 x 1", lambda: _with_size(content, 1, 1), False),
        ("header of 60,000 x 60,000", lambda: _with_size(content, 60_000, 60_000), False),
    ]
    what, change, is_legal = rng.choice(changes)
    path.write_bytes(change())
    return Mutation(f"{what} at byte {position} of {len(content)}", is_legal)


def _saved(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def _with_size(content: bytes, width: int, height: int) -> bytes:
    """Return a PNG with another size in its header, which is otherwise in order."""
    if not content.startswith(b"\x89PNG"):
        return content[:100]
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
