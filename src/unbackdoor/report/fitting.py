"""Tables that fit the screen: the fullest of several forms that it has room for, in which no number is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from unbackdoor.screen import broken, cut, longest_piece
from unbackdoor.visible_text import one_line


class FirstThatFits:
    """The first of these forms that the width has room for, else the last. Each is made when it is looked at."""

    def __init__(self, *forms: Callable[[], RenderableType]) -> None:
        self.forms = forms

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, form in enumerate(self.forms):
            made = form()
            needed = Measurement.get(console, options.update_width(10_000), made).minimum
            if needed <= options.max_width or number + 1 == len(self.forms):
                yield made
                return


class Lines:
    """Lines of a cell as they are: (text, style) each. None is ever broken."""

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self.lines = [(one_line(text), style) for text, style in lines]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = max((cell_len(text) for text, _ in self.lines), default=0)
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # `Text` is never parsed as markup, so that a name such as "[red]" stays what it is.
        for text, style in self.lines:
            yield Text(text, style=style, no_wrap=True, overflow="crop")


class Names:
    """Lines that are cut with an ellipsis where there is no room; what must stand behind it stays.

    Args:
        lines: (name, what stays, style) each.
        least: so many cells are kept at least.
    """

    def __init__(self, lines: Iterable[tuple[str, str, str]], least: int = 16) -> None:
        self.lines = [(one_line(name), tail, style) for name, tail, style in lines]
        self.least = least

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = max((cell_len(name + tail) for name, tail, _ in self.lines), default=0)
        return Measurement(min(width, self.least), width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for name, tail, style in self.lines:
            yield Text(cut(name, options.max_width - cell_len(tail)) + tail, style=style, no_wrap=True, overflow="crop")


class Sentence:
    """Prose that breaks between words, in a column of at least so many cells."""

    def __init__(self, text: str, style: str = "", least: int = 16) -> None:
        self.text, self.style, self.least = one_line(text), style, least

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least = max(self.least, longest_piece(self.text))
        return Measurement(min(least, cell_len(self.text)), cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in broken(self.text, options.max_width):
            yield Text(line, style=self.style, no_wrap=True, overflow="crop")


@dataclass(frozen=True)
class Block:
    """What a row becomes where no table fits: a title, a line about it, and (label, text, small print) below.

    Of the small print, which may be given in shorter forms, the first that fits a line is taken.
    """

    title: str
    style: str
    about: str
    items: Sequence[tuple[str, str, tuple[str, ...]]]


class Blocks:
    """Rows below each other, and a note below them all."""

    def __init__(self, blocks: Sequence[Block], note: str = "") -> None:
        self.blocks, self.note = blocks, note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        column = max((cell_len(label) for block in self.blocks for label, _, _ in block.items), default=0)
        # The text stands beside its label where there is room for a change of a rate, else below it.
        beside = width - column - 4 >= 16
        indent = " " * (column + 4 if beside else 4)
        for block in self.blocks:
            yield from _texts(broken(one_line(block.title), width), block.style)
            about = broken(one_line(block.about), width - 2) if block.about else ()
            yield from _texts((f"  {line}" for line in about), "")
            for label, text, small in block.items:
                lines = self._item(one_line(text), [one_line(form) for form in small], width - len(indent))
                head = f"  {label}"
                if not beside:
                    yield from _texts((f"  {line}" for line in broken(label, width - 2)), "")
                    head = ""
                for line in lines:
                    yield Text(set_cell_size(head, len(indent)), no_wrap=True, overflow="crop").append(line)
                    head = ""
            if block is not self.blocks[-1] or self.note:
                yield Text("")
        yield from _texts(broken(one_line(self.note), width) if self.note else (), "dim")

    @staticmethod
    def _item(text: str, small: Sequence[str], room: int) -> list[Text]:
        fitting = next((form for form in small if cell_len(form) <= room), "")
        if fitting and cell_len(text) + 2 + cell_len(small[0]) <= room:
            aligned = set_cell_size(text, max(cell_len(text), min(13, room - 2 - cell_len(small[0]))))
            return [Text(f"{aligned}  ").append(small[0], style="dim")]
        return [*map(Text, broken(text, room)), *([Text(fitting, style="dim")] if fitting else [])]


def plain_table() -> Table:
    """A table with a rule below its headings and nothing else drawn.

    Only columns of `Names` and `Sentence` are made narrower than they are by nature; those of `Lines` are added with
    `no_wrap`, as rich would take room from the widest column, whatever it holds.
    """
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, collapse_padding=True)


def _texts(lines: Iterable[str], style: str) -> Iterable[Text]:
    return (Text(line, style=style, no_wrap=True, overflow="crop") for line in lines)
