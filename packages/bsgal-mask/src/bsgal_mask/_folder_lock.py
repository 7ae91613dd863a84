"""One writer at a time in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_NAME = ".lock"


class FolderLock:
    """Hold a folder until the end of a `with` block; the system releases a dead process's.

    Args:
        folder: The folder; made if missing. A file `.lock` stays in it, empty.

    Raises:
        BlockingIOError: Another process, or another lock of this one, holds the folder.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / _NAME).open("ab")
        try:
            _lock(self._file.fileno())
        except OSError:
            self._file.close()
            raise

    def __enter__(self) -> FolderLock:
        """Return the lock itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let other writers in."""
        self._file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
