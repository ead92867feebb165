"""What a command reads and where it writes must not lie within each other, by whatever names they go.

Files are told apart by device and number, so symbolic and hard links, relative names, other mounts of the same files
and names in another case are seen through.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from unbackdoor.errors import UserError

Identity = tuple[int, int]


def check_apart(out: Path, inputs: Iterable[tuple[str, str | Path]], *, only_within: bool = False) -> None:
    """Raise a `UserError` where an input lies within `out`, or (not `only_within`) `out` within an input's directory.

    Args:
        out: where a command will write; it need not exist.
        inputs: what it reads, with the option that names it; what does not exist (a hub id, a text) is passed over.
    """
    found = [(option, Path(given)) for option, given in inputs if _exists(given)]
    if not found:
        return
    around = {identity for place in _with_parents(out) if (identity := _identity(place)) is not None}
    inside = set(_identities(out))
    for option, given in found:
        if given.is_dir() and _identity(given) in around:
            if only_within and _identity(given) != _identity(out):
                continue
            raise UserError(f"--out '{out}' lies within '{given}' ({option}), which is only read: give another --out")
        places = [*_with_parents(given), *(_below(given) if given.is_dir() else ())]
        if any(_identity(place) in inside for place in places):
            raise UserError(f"--out '{out}' holds '{given}' ({option}), which is only read: give another --out")


def _exists(given: str | Path) -> bool:
    try:
        return bool(str(given).strip()) and Path(given).exists()
    except (OSError, ValueError):  # a text may be too long for a name
        return False


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _with_parents(path: Path) -> Iterator[Path]:
    """A path and what it lies in, by its name and by where links lead."""
    for absolute in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):  # noqa: PTH100 - links are kept
        yield absolute
        yield from absolute.parents


def _identities(directory: Path) -> Iterator[Identity]:
    """Of a directory and everything in it, whatever links lead out of it."""
    if (own := _identity(directory)) is not None:
        yield own
    for place, names, files in os.walk(directory):
        for name in (*names, *files):
            path = Path(place, name)
            if not path.is_symlink() and (identity := _identity(path)) is not None:
                yield identity


def _below(directory: Path) -> Iterator[Path]:
    """What is in an input's directory; links are looked through."""
    for place, names, files in os.walk(directory):
        yield from (Path(place, name) for name in (*names, *files))
