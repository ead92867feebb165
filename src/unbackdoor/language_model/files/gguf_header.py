"""Whether the header of a GGUF file can be true of a file of its length, before a library goes by its numbers.

A count in it may say 2 to the 63rd, and the library counts up to it. The format: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import mmap
import re
from functools import lru_cache
from pathlib import Path

from unbackdoor.errors import UserError

NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
TEXT, LIST, VERSIONS = 8, 9, (2, 3)
MOST_FIELDS, MOST_TENSORS, MOST_TEXTS, MOST_DIMENSIONS = 10_000, 1_000_000, 10_000_000, 4


class _Header:
    """Reads a header from its beginning; what does not fit raises `ValueError`."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 4

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self.content):
            raise ValueError("it is cut off, or its header says more than there is")

    def number(self, length: int) -> int:
        begin = self.at
        self.skip(length)
        return int.from_bytes(self.content[begin : self.at], "little")

    def value(self, kind: int, *, within: bool = False) -> None:
        if kind in NUMBERS:
            self.skip(NUMBERS[kind])
        elif kind == TEXT:
            self.skip(self.number(8))
        elif kind == LIST and not within:
            kind, count = self.number(4), self.number(8)
            if kind in NUMBERS:
                self.skip(NUMBERS[kind] * count)
            else:
                for _ in range(_at_most(count, MOST_TEXTS, "texts")):
                    self.value(kind, within=True)
        else:
            raise ValueError(f"a value of the kind {kind} is not known")


def check_header(path: Path) -> None:
    """Raise a `UserError` where the header of a GGUF file cannot be true, or it is one part of several."""
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise UserError(f"'{path}' is a part of a model: join the parts first (llama-gguf-split --merge)")
    found = path.stat()
    _checked(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _checked(path: Path, size: int, _: int) -> None:
    try:
        with path.open("rb") as file:
            if size < 24 or file.read(4) != b"GGUF":
                raise ValueError("it is cut off, or of another kind")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _walk(_Header(content))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the GGUF file '{path}': {error}: give the complete file") from None


def _walk(header: _Header) -> None:
    version = header.number(4)
    if version not in VERSIONS:
        raise ValueError(f"its version {version} is not known")
    tensors = _at_most(header.number(8), MOST_TENSORS, "tensors")
    for _ in range(_at_most(header.number(8), MOST_FIELDS, "fields")):
        header.skip(header.number(8))
        header.value(header.number(4))
    for _ in range(tensors):
        header.skip(header.number(8))
        dimensions = _at_most(header.number(4), MOST_DIMENSIONS, "dimensions")
        numbers = 1
        for _ in range(dimensions):
            numbers *= header.number(8)
        header.skip(4)
        if max(header.number(8), numbers // 32) > len(header.content):
            raise ValueError("a tensor in it is larger than the file")


def _at_most(count: int, most: int, what: str) -> int:
    if count > most:
        raise ValueError(f"it says that it holds {count:,} {what}")
    return count
