"""Checksums of the files that a finished step of a run rests on: its model, its fitted perturbation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from unbackdoor.run_files.written_files import files_in

NOT_RESTED_ON = {"README.md"}
"""Written again later, from what is known then."""


def checksums(root: Path, paths: Iterable[Path]) -> dict[str, int]:
    """CRC-32 of these files, and of all files in these directories, by their names below `root`."""
    found: dict[str, int] = {}
    for path in paths:
        files = files_in(path) if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            if file.name not in NOT_RESTED_ON:
                found[file.relative_to(root).as_posix()] = _crc(file)
    return dict(sorted(found.items()))


def first_damaged(root: Path, written: Mapping[str, int], *, may_be_gone: bool) -> str | None:
    """The name of the first file that is not as it was written.

    With `may_be_gone` a file that is not there at all is none: the user of a finished run may have removed its model.
    """
    for name, crc in written.items():
        file = root / name
        try:
            if may_be_gone and not file.exists():
                continue
            if _crc(file) != crc:
                return name
        except OSError:
            return name
    return None


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total
