"""JSON lines that carry a checksum of themselves, so that a damaged one is told from a whole one.

A line is an object whose last entry is `"#"`: the CRC-32 of the line without that entry, in eight hexadecimal digits.
Readers that do not know of it see one entry more. Lines without are older than the checksums, and are read as they are.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

_MARK = re.compile(rb'(?:, )?"#": "([0-9a-f]{8})"\}$')


class DamagedError(ValueError):
    """A line that is not what was written."""


def with_checksum(row: Mapping[str, Any]) -> bytes:
    """The row as a line with its checksum. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode()
    return text[:-1] + (b", " if row else b"") + b'"#": "%08x"}\n' % zlib.crc32(text)


def has_checksum(line: bytes) -> bool:
    """Whether a line, without its end, carries one."""
    return _MARK.search(line) is not None


def parsed(line: bytes) -> dict[str, Any]:
    """The row of a line, without its checksum.

    Raises:
        DamagedError: the checksum is not that of the line, or it is no JSON object.
    """
    found = _MARK.search(line)
    if found is not None and zlib.crc32(line[: found.start()] + b"}") != int(found[1], 16):
        raise DamagedError("its checksum differs")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DamagedError("it is not JSON") from None
    if not isinstance(row, dict):
        raise DamagedError("it is no JSON object")
    row.pop("#", None)
    return row


@dataclass(frozen=True)
class Lines:
    """What a file of lines holds."""

    rows: Sequence[dict[str, Any] | None]
    """Every line in order; None where it is damaged. A last one that a kill cut short is none."""
    first_damaged: int | None
    """The number of the first damaged line, from 0."""

    @property
    def until_damaged(self) -> list[dict[str, Any]]:
        """The rows before the first damaged line."""
        return [row for row in self.rows[: self.first_damaged] if row is not None]

    @property
    def good(self) -> list[dict[str, Any]]:
        """The rows that are whole."""
        return [row for row in self.rows if row is not None]


def read(content: bytes, *, sealed: bool = False) -> Lines:
    """The lines of a file.

    Args:
        content: of the whole file.
        sealed: every line has had a checksum since the file began. Else the first ones may be of an earlier version,
            which gave none, and left a line that a kill had cut short as it was.
    """
    lines = content.split(b"\n")  # at "\n" alone: texts may hold other line separators
    last = lines.pop()
    if end_of_whole_lines(last):
        lines.append(last)
    rows: list[dict[str, Any] | None] = []
    for line in lines:
        marked = has_checksum(line)
        sealed = sealed or marked
        try:
            rows.append(parsed(line) if marked or not sealed else None)
        except DamagedError:
            if sealed or b"\0" in line:
                rows.append(None)
    return Lines(rows, rows.index(None) if None in rows else None)


def end_of_whole_lines(content: bytes) -> int:
    """Up to where a file is whole lines, but for a last one whose end alone is missing."""
    end = content.rfind(b"\n") + 1
    try:
        if content[end:]:
            parsed(content[end:])
            return len(content)
    except DamagedError:
        pass
    return end


def as_json(value: object) -> Any:
    """What `json.dumps` makes of a model, as its `default`."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True, by_alias=True)
    raise TypeError(f"{type(value).__name__} is no JSON")
