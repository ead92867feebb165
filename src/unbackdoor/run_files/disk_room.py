"""Whether a disk has room for what a run will surely write: better known before hours of work than after."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from unbackdoor.errors import UserError
from unbackdoor.run_files.written_files import files_in


def check_room(out: Path, parts: Mapping[str, int], *, resume: bool = False) -> None:
    """Raise a `UserError` with numbers where a run cannot fit.

    What is not known for certain is counted as nothing: a run that might fit goes on, and a full disk loses no work.

    Args:
        out: where a run will write; it need not exist.
        parts: what is there at once, and its bytes at least.
        resume: what is in `out` already is part of it.
    """
    needed = sum(parts.values())
    try:
        around = next(place for place in (out, *out.absolute().parents) if place.is_dir())
        free = shutil.disk_usage(around).free
        if resume and out.is_dir():
            needed -= sum(file.lstat().st_size for file in files_in(out))
    except (OSError, StopIteration):
        return
    if needed > free:
        shown = ", ".join(f"{what} {size(count)}" for what, count in parts.items())
        raise UserError(
            f"--out '{out}': {size(needed)} will be written ({shown}), and {size(free)} are free there: make room, or "
            "give another --out"
        )


def size(count: int) -> str:
    """Bytes for people."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:,.1f} {unit}"
    return f"{count} bytes"
