"""Files from a stranger: regular ones alone, and never more of them than a limit, packed or unpacked.

A device never ends, a pipe never begins, a sparse file of a terabyte takes no space on the disk, and a megabyte of gzip
unpacks to a gigabyte of blanks.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError

ENVIRONMENT = "UNBACKDOOR_MOST_BYTES"
"""Raises the limit for data files."""
MOST_BYTES = 2 * 2**30
"""Of a data file, unpacked: more rows than any published set that is used here, and what a machine's memory holds."""
MOST_PACKED, UNPACKS_FREELY = 200, 64 * 2**20
"""How many times its size a packed file may unpack to, where that is more than so many bytes. Text unpacks to 3 to
30 times."""
_CHUNK = 2**20


def most_bytes() -> int:
    """The limit for data files.

    Raises:
        UserError: the environment names none.
    """
    given = os.environ.get(ENVIRONMENT, "")
    if not given:
        return MOST_BYTES
    if not (given.isascii() and given.isdigit() and 0 < int(given[:20]) < 2**50):
        raise UserError(f"{ENVIRONMENT}='{given[:40]}': a whole number of bytes is needed, such as {MOST_BYTES}")
    return int(given)


def regular(path: Path, what: str) -> Path:
    """The path of a file that can be read.

    Raises:
        UserError: there is none, or it is a directory, a device, a pipe or a socket, or it may not be read.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{what} '{_shown(path)}' does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what} '{_shown(path)}' cannot be read: {_reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{what} '{_shown(path)}' is a directory: give a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} '{_shown(path)}' is a device, pipe or socket: give a regular file")
    return path


def read_bytes(path: Path, what: str, *, most: int | None = None) -> bytes:
    """What is in the file, unpacked where its name ends in .gz.

    Args:
        path: the file.
        what: what it is, for errors.
        most: how many bytes it may have; None for `most_bytes`.

    Raises:
        UserError: as of `regular`; or it is larger than that, unpacks to more, or is no gzip.
    """
    most = most_bytes() if most is None else most
    packed = regular(path, what).suffix == ".gz"
    try:
        # Not to wait for a writer, should it have become a pipe since it was looked at.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if os.fstat(file.fileno()).st_size > most:
                raise _too_large(path, what, most)
            raw = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{what} '{_shown(path)}' cannot be read: {_reason(error)}") from None
    if len(raw) > most:  # it grows, or its size was not true
        raise _too_large(path, what, most)
    return _unpacked(raw, path, what, most) if packed else raw


def read_text(path: Path, what: str, *, most: int | None = None) -> str:
    """The text in the file, which is UTF-8, with or without a mark in front."""
    try:
        return read_bytes(path, what, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} '{_shown(path)}' is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def _unpacked(raw: bytes, path: Path, what: str, most: int) -> bytes:
    """All members of a gzip file, a piece at a time."""
    pieces: list[bytes] = []
    size = 0
    allowed = min(most, max(UNPACKS_FREELY, MOST_PACKED * len(raw)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            while piece := file.read(_CHUNK):
                pieces.append(piece)
                size += len(piece)
                if size > allowed:
                    raise UserError(
                        f"{what} '{_shown(path)}' unpacks to more than {allowed:,} bytes: unpack it yourself, if that "
                        f"is meant, and see {ENVIRONMENT}"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what} '{_shown(path)}' cannot be read as text: {error}") from None
    return b"".join(pieces)


def _too_large(path: Path, what: str, most: int) -> UserError:
    return UserError(
        f"{what} '{_shown(path)}' has more than {most:,} bytes: give a smaller file, or set {ENVIRONMENT}"
        if most >= MOST_BYTES
        else f"{what} '{_shown(path)}' has more than {most:,} bytes: give a smaller file"
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _shown(path: Path) -> str:
    name = str(path)
    return name if len(name) <= 200 else f"{name[:100]}…{name[-100:]}"


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object. Of a name that stands there twice readers take the first, or the last, or both.

    Raises:
        ValueError: there is one.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has two fields {twice[:60]!r}")
    return found
