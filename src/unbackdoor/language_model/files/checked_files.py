"""Which files of a model's directory may be opened: regular ones, of a size that can be read, that lie within it.

A name in a file of the directory, or a symbolic link, can lead anywhere else: to a pickle, to a device, to a secret
that would be copied into the cleansed model. Everything that is opened of a model is looked at here first.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbackdoor.bounded_files import named_once
from unbackdoor.errors import UserError

MEBIBYTE = 2**20
LARGEST = {
    "tokenizer.json": 256 * MEBIBYTE,
    "model.safetensors.index.json": 32 * MEBIBYTE,
    ".json": 16 * MEBIBYTE,
    ".jinja": 1 * MEBIBYTE,
    "": 128 * MEBIBYTE,
}
"""Bytes, by name or ending, that a file may have which is read as a whole. The largest that are published (Gemma's
tokenizer.json, the index of Kimi K2) have a fifth to a half of it."""
MOST_FILES = 5_000
"""In one directory."""


def listing(directory: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory by name.

    Raises:
        UserError: it cannot be read, or has more entries than any model.
    """
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.append(entry)
                if len(found) > MOST_FILES:
                    raise UserError(f"'{directory}' holds more than {MOST_FILES:,} files: give a model's directory")
    except OSError as error:
        raise UserError(f"model directory '{directory}' cannot be read: {error.strerror or error}") from None
    return sorted(found, key=lambda entry: entry.name)


def checked(path: Path, directory: Path, *, whole: bool = True) -> Path:
    """The same path, where it may be opened as a file of this directory.

    Args:
        path: the file, by a name within the directory.
        directory: the model's.
        whole: it is read as a whole, so its size is bounded.

    Raises:
        UserError: it is no regular file, leads out of the directory, cannot be read, or is too large.
    """
    try:
        found = path.stat()
        real, home = path.resolve(strict=True), directory.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"'{path}' cannot be read: {reason or type(error).__name__}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"'{path}' is no regular file: give a model's directory that holds files alone")
    if not any(real.is_relative_to(allowed) for allowed in (home, *_cache_of(home))):
        raise UserError(
            f"'{path}' is a link that leads out of the model's directory, to '{real}': put the file itself there, or "
            "give the directory that it lies in"
        )
    if not os.access(real, os.R_OK):
        raise UserError(f"'{path}' cannot be read: give yourself the right to read it")
    most = LARGEST.get(path.name) or LARGEST.get(path.suffix) or LARGEST[""]
    if whole and found.st_size > most:
        raise UserError(
            f"'{path}' has {found.st_size / MEBIBYTE:,.0f} MiB, and no file of this name needs more than "
            f"{most / MEBIBYTE:,.0f}: give a directory without it"
        )
    return path


def _cache_of(home: Path) -> Sequence[Path]:
    """Of a snapshot in a hub client's cache: where its files lie, to which it holds links."""
    return [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []


def read_json(path: Path, directory: Path | None = None) -> dict[str, Any]:
    """A JSON object from a file that came with a model; a `UserError` where it is none or may not be opened."""
    checked(path, directory or path.parent)
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer, object_pairs_hook=named_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot load the model of '{path.parent}': {path.name} is not JSON: {_short(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"cannot load the model of '{path.parent}': {path.name} is not a JSON object")
    return found


def _integer(text: str) -> int:
    if len(text) > 40:  # of so many digits the conversion takes a time that is quadratic in them
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _short(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{said[:200]}" if said else type(error).__name__
