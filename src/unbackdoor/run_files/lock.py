"""One writer: a run directory belongs to one process at a time.

The lock is the system's own (`flock`) on a file that stays in the directory. It ends with the process, however that
ends, so nothing has to be cleaned up after a kill. Where the system or the file system has none, there is no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.run_files.whole_files import writing
from unbackdoor.run_files.written_files import LOCK

PATIENCE = 2.5
"""Seconds to wait for a lock: the processes of a run that was killed end within a second or two."""

_held: dict[tuple[int, int], int] = {}
"""The locks of this process: device and number of the lock's file → its descriptor."""


def hold(directory: Path) -> None:
    """Take the directory for this process until it ends; one that it has already stays its own.

    Raises:
        UserError: another process writes there; one line names it.
    """
    with writing(directory / LOCK):
        opened = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    status = os.fstat(opened)
    if (status.st_dev, status.st_ino) in _held:
        os.close(opened)
        return
    try:
        if not _locked(opened):
            raise in_use(directory, os.pread(opened, 4096, 0))
    except BaseException:
        os.close(opened)
        raise
    _held[status.st_dev, status.st_ino] = opened
    told = {"process": os.getpid(), "host": socket.gethostname(), "command": " ".join(_command())[:200]}
    with contextlib.suppress(OSError):
        os.ftruncate(opened, 0)
        os.pwrite(opened, json.dumps(told).encode(), 0)


def check_free(directory: Path) -> None:
    """Raise a `UserError` where another process writes into the directory; nothing is changed there."""
    try:
        opened = os.open(directory / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        status = os.fstat(opened)
        if (status.st_dev, status.st_ino) not in _held and not _locked(opened):
            raise in_use(directory, os.pread(opened, 4096, 0))
    finally:
        os.close(opened)


def let_go(directory: Path) -> None:
    """Give a directory back before this process ends."""
    with contextlib.suppress(OSError):
        status = (directory / LOCK).stat()
        opened = _held.pop((status.st_dev, status.st_ino), None)
        if opened is not None:
            os.close(opened)


def in_use(directory: Path, told: bytes) -> UserError:
    """One line that names who has the directory."""
    by: Any = None
    with contextlib.suppress(ValueError):
        by = json.loads(told)
    who = "another process"
    if isinstance(by, dict):
        who = f"process {by.get('process')} on {by.get('host')} ({by.get('command')})"
    return UserError(f"--out '{directory}' is in use by {who}: wait for it, or give another --out")


def _locked(opened: int) -> bool:
    """Whether the lock could be taken; also where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    patient_until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return True  # a file system without locks
        if time.monotonic() > patient_until:
            return False
        time.sleep(0.05)


def _command() -> list[str]:
    return [Path(sys.argv[0]).name if sys.argv[0] else "python", *sys.argv[1:]]
