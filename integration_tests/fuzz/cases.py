"""Runs one case in a process of its own, with limits, and says how it ended."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mutations import Mutation, mutate

Verdict = Literal["refused", "unchanged", "honest", "silent", "internal", "fault", "hang"]
BAD: tuple[Verdict, ...] = ("silent", "internal", "fault", "hang")
GOOD: tuple[Verdict, ...] = ("refused", "unchanged", "honest")
_ENTRY = re.compile(r"(image|annotation) \d+\b")
_MEMORY_BYTES = 1 << 30
_CPU_S = 5
_WALL_S = 60.0


class Refused(Exception):  # noqa: N818 - it is an outcome, not an error
    """The operation told its user of the damage in another way than by an exception."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader under test.

    Attributes:
        name: Package and what is read.
        folder: The valid input.
        files: Files below it that are mutated, as patterns.
        read: The operation: returns all that it makes of the folder, as JSON values.
        says: What the folder's content says, read in the plainest way, without any check.
        errors: The package's own errors.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    says: Callable[[Path], Any]
    errors: tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One mutation of one target's input, chosen by a number."""

    number: int
    seed: int

    def rng(self) -> random.Random:
        """Return the generator that decides everything in the case."""
        return random.Random(f"{self.seed}:{self.number}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    verdict: Verdict
    target: str
    what: str
    detail: str


def run_case(case: Case, targets: list[Target], scratch: Path, usual: dict[str, str]) -> Outcome:
    """Run a case in a forked process and wait for its end.

    Args:
        case: The case.
        targets: All targets.
        scratch: Folder for the case's own copy of the input.
        usual: What each target makes of its unchanged input.
    """
    target = targets[case.number % len(targets)]
    folder = scratch / f"case-{case.number}"
    try:
        content, status = in_child(lambda pipe: _work(case, target, folder, usual, pipe))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what, _, said_last = content.partition("\n")
    said = json.loads(said_last) if said_last else {}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        verdict: Verdict = "hang" if number in (signal.SIGKILL, signal.SIGXCPU) else "fault"
        return Outcome(verdict, target.name, what, f"ended by signal {number}")
    if "verdict" not in said:
        return Outcome("internal", target.name, what, f"ended with status {status}")
    return Outcome(said["verdict"], target.name, what, said["detail"])


def in_child(work: Callable[[int], None]) -> tuple[str, int]:
    """Do some work in a forked process; return what it wrote to its pipe, and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            work(writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    content = b""
    try:
        while select.select([reader], [], [], _WALL_S)[0]:
            piece = os.read(reader, 1 << 16)
            if not piece:
                break
            content += piece
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
    return content.decode(), os.waitpid(child, 0)[1]


def usual_result(target: Target) -> str:
    """Return what a target makes of its unchanged input."""

    def work(pipe: int) -> None:
        _silenced()
        _send(pipe, canonical(target.read(target.folder)))

    content, status = in_child(work)
    assert status == 0, f"{target.name} cannot read its valid input"
    return content


def _send(pipe: int, text: str) -> None:
    content = text.encode()
    while content:
        content = content[os.write(pipe, content) :]


def _silenced() -> None:
    """Send what commands print to nowhere."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _work(case: Case, target: Target, folder: Path, usual: dict[str, str], pipe: int) -> None:
    """Do the case's work in the child, and send its verdict."""
    rng = case.rng()
    shutil.copytree(target.folder, folder, copy_function=shutil.copy2)
    path = rng.choice(sorted(p for pattern in target.files for p in folder.glob(pattern)))
    mutation = mutate(path, rng)
    what = f"{path.relative_to(folder)}: {mutation.what}"
    # First, so that the parent knows what it was about should the process end by a signal.
    _send(pipe, f"{what!r}\n")
    _limit()
    _silenced()
    verdict, detail = _judged(target, folder, path, mutation, usual[target.name])
    _send(pipe, json.dumps({"verdict": verdict, "detail": detail}))


def _judged(
    target: Target, folder: Path, path: Path, mutation: Mutation, unchanged: str
) -> tuple[Verdict, str]:
    try:
        result = canonical(target.read(folder))
    except (*target.errors, Refused) as error:
        message = str(error)
        # A function that is given one entry of a file names the entry.
        if path.name in message or str(folder) in message or _ENTRY.match(message):
            return "refused", message[:300]
        return "internal", f"no file is named: {type(error).__name__}: {message[:300]}"
    # Whatever else comes is what this test is for.
    except BaseException:  # noqa: BLE001
        return "internal", traceback.format_exc()[-1500:]
    if result == unchanged:
        return "unchanged", ""
    detail = f"{_difference(unchanged, result)}"
    if not mutation.is_legal:
        return "silent", detail
    try:
        says = canonical(target.says(folder))
    except Exception as error:  # noqa: BLE001 - a plain reader may fail in any way
        return "silent", f"{detail}; a plain reader fails: {error!r}"
    if result == says:
        return "honest", ""
    return "silent", f"{detail}; a plain reader: {_difference(says, result)}"


def canonical(value: Any) -> str:
    """Return a result as text; 1, 1.0 and true are three things."""
    return json.dumps(value, sort_keys=True)


def _difference(first: str, second: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    start = max(0, at - 60)
    return f"{first[start : at + 60]!r} became {second[start : at + 60]!r}"


def _limit() -> None:
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    most = kib * 1024 + _MEMORY_BYTES
    # Of the address space, libraries reserve gigabytes that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
