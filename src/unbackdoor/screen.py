"""How wide the screen is, and texts that fit it, measured in the cells that a terminal draws."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 100
"""The width of what goes into a pipe or a file: the same on every machine, whatever terminal is near."""

ELLIPSIS = "…"

# After a blank, but never in "99.0% → 0%", "n 200" or "[default: 5]"; and after a hyphen between words.
_BLANK = re.compile(r"(?<=\s)(?!→)(?<!→\s)(?<!\bn\s)(?<!\[default:\s)")
_HYPHEN = re.compile(_BLANK.pattern + r"|(?<=[^\W\d]-)(?=\w)")


def columns(stream: TextIO) -> int:
    """The width to write for: COLUMNS where it is set, else the terminal's, else `PIPE_COLUMNS`."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return PIPE_COLUMNS


def console(stream: TextIO | None = None) -> Console:
    """What results are printed on: standard output, unless another stream is given."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, width=columns(stream))


def cut(text: str, width: int) -> str:
    """The text, with an ellipsis in place of what is beyond so many cells."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + ELLIPSIS if width > 0 else ""


def broken(text: str, width: int, *, at_hyphens: bool = True) -> list[str]:
    """The text in lines of at most so many cells, broken between words; inside a word only where it is longer."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for piece in (_HYPHEN if at_hyphens else _BLANK).split(text):
        for part in [piece] if cell_len(piece.rstrip()) <= width else chop_cells(piece, max(width, 2)):
            if lines[-1] and cell_len((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def longest_piece(text: str) -> int:
    """The cells of the longest piece that `broken` leaves whole."""
    from rich.cells import cell_len

    return max(cell_len(piece.rstrip()) for piece in _HYPHEN.split(text))


def hanging(text: str, width: int, indent: str = "  ") -> str:
    """A sentence in lines of at most so many cells, broken at its blanks; all but the first are indented."""
    first, *rest = broken(text, width, at_hyphens=False)
    if not rest:
        return first
    others = broken(text[len(first) :].lstrip(), width - len(indent), at_hyphens=False)
    return "\n".join([first, *(indent + line for line in others)])
