"""How wide the screen is, texts that fit it, and the one place that prints.

Names of files and directories, triggers, answers and what a library says of them are a stranger's: an escape sequence
in one of them could write a verdict over ours. So everything that is printed goes through here, and is made visible.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from unbackdoor.run_files.lines import as_json
from unbackdoor.visible_text import one_line, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_COLUMNS = 100
"""The width of what goes into a pipe or a file: the same on every machine, whatever terminal is near."""

WIDEST = 10_000
"""No screen has more columns, whatever the environment says."""

ELLIPSIS = "…"

# After a blank, but never in "99.0% → 0%", "n 200" or "[default: 5]"; and after a hyphen between words.
_BLANK = re.compile(r"(?<=\s)(?!→)(?<!→\s)(?<!\bn\s)(?<!\[default:\s)")
_HYPHEN = re.compile(_BLANK.pattern + r"|(?<=[^\W\d]-)(?=\w)")


def columns(stream: TextIO) -> int:
    """The width to write for: COLUMNS where it is set, else the terminal's, else `PIPE_COLUMNS`."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and wanted.strip("0"):
        return min(int(wanted[:6]), WIDEST)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return PIPE_COLUMNS


class ReaderGoneError(Exception):
    """Who reads our output has seen enough, and closed it."""


# Printing ------------------------------------------------------------------------------------------------------------

ERASE = "\r\x1b[2K"
"""Takes back the line that the cursor is in: the one sequence of ours that a terminal acts on, beside colours."""


def say(text: str, stream: TextIO | None = None, *, width: int | None = None) -> None:
    """Print a sentence, whatever is in it, on standard output or another stream: one line, or with `width` as many as
    it needs, all but the first indented."""
    text = one_line(text)
    put(hanging(text, width) if width is not None else text, stream)


def put(text: str, stream: TextIO | None = None, *, end: str = "\n", over: bool = False) -> None:
    """Print a text that has its lines already; `over` the line that the cursor is in."""
    try:
        print(f"{ERASE if over else ''}{visible(text)}", end=end, file=stream or sys.stdout, flush=True)
    except BrokenPipeError:
        raise ReaderGoneError from None


def put_json(value: Any) -> None:
    """Print a value as JSON in one line of ASCII."""
    put(json.dumps(value, ensure_ascii=True, default=as_json))


def show(*shown: RenderableType, style: str | None = None) -> None:
    """Print tables, or with a style lines, on standard output."""
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class Visible(Console):
        """What a table holds is made visible as well, should its maker have forgotten."""

        def on_broken_pipe(self) -> None:
            raise ReaderGoneError

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, how, control in super().render(renderable, options):
                yield Segment(visible(text) if control is None else text, how, control)

    screen = Visible(file=sys.stdout, width=columns(sys.stdout))
    for renderable in shown:
        if isinstance(renderable, str):
            screen.print(visible(renderable), markup=False, highlight=False, soft_wrap=True, style=style)
        else:
            screen.print(renderable)


def let_libraries_speak_visibly() -> None:
    """What libraries log and warn of goes through here too, and what a stream cannot encode is written as an escape."""
    record, warning = logging.getLogRecordFactory(), warnings.formatwarning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if getattr(record, "visible", False):
        return

    def visible_record(*given: Any, **more: Any) -> logging.LogRecord:
        made = record(*given, **more)
        try:
            made.msg, made.args = one_line(made.getMessage()), ()
        except Exception:  # its arguments do not fit: the handler says so
            made.msg = one_line(str(made.msg))
        return made

    def visible_warning(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        return warning(one_line(str(message)), category, filename, lineno, line)

    visible_record.visible = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(visible_record)
    warnings.formatwarning = visible_warning  # type: ignore[assignment]


# Texts that fit ------------------------------------------------------------------------------------------------------


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
