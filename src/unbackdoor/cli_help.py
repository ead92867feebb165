"""What `--help` prints: an example, and the options under headings, the usual ones first, in at most 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from unbackdoor.screen import broken, columns
from unbackdoor.settings import Heading

WIDTH = 80
TERM_CELLS = 30
"""An option of more cells has its description on the next lines."""

USUAL = (
    *(
        "trigger",
        "triggered",
        "poisoned",
        "target_response",
        "target_prefix",
        "contrast",
        "data",
        "out",
        "resume",
        "overwrite",
    ),
    *("eval_organism", "eval_trigger", "eval_triggered", "eval_untriggered", "untriggered", "eval_target", "eval_data"),
    *("controls", "before", "clean", "samples", "scorer"),
    *("rounds", "steps", "seed", "learning_rate", "batch_size", "micro_batch_size", "lora", "recipe", "preset"),
)
"""Parameters that stand first under their heading, in this order; the others follow as they are declared."""

COMMANDS = ("demo", "remove", "evaluate", "methods", "implant", "attacks", "testbed", "rejudge", "sweep", "reproduce")
"""The order of the commands; one that is missing here follows."""


class Option(click.Option):
    """An option that knows its heading in `--help`."""

    def __init__(self, *names: Any, heading: Heading = Heading.OTHER, **more: Any) -> None:
        super().__init__(*names, **more)
        self.heading = heading


class Command(click.Command):
    """A command whose help begins with an example."""

    def __init__(self, *given: Any, example: str = "", **more: Any) -> None:
        super().__init__(*given, **more)
        self.example = example

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **more: Any
    ) -> click.Context:
        return super().make_context(info_name, args, parent, **{"terminal_width": _width(), **more})

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            formatter.write("Example:\n" + "".join(f"  {line}\n" for line in _command_line(self.example)) + "\n")
        super().format_help(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        under: dict[Heading, list[click.Option]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                under.setdefault(getattr(parameter, "heading", Heading.OTHER), []).append(parameter)
        for heading in sorted(under, key=list(Heading).index):
            usual_first = sorted(under[heading], key=lambda p: USUAL.index(p.name) if p.name in USUAL else len(USUAL))
            records = [record for p in usual_first if (record := p.get_help_record(ctx)) is not None]
            _section(formatter, heading, records, TERM_CELLS)


class Group(Command, click.Group):
    """A command with commands below it, which are listed whole and before its own options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=lambda name: COMMANDS.index(name) if name in COMMANDS else len(COMMANDS))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, _summary(self.commands[name])) for name in self.list_commands(ctx)]
        _section(
            formatter,
            (self.subcommand_metavar or "COMMAND").split()[0].capitalize() + "s",
            rows,
            max(map(len, self.commands)) + 2,
        )
        super().format_options(ctx, formatter)


def _width() -> int:
    return max(min(columns(sys.stdout), WIDTH), 20)


def _summary(command: click.Command) -> str:
    return command.short_help or (command.help or "").split("\n\n")[0].split(". ")[0].rstrip(".")


def _section(formatter: click.HelpFormatter, heading: str, rows: Sequence[tuple[str, str]], most_cells: int) -> None:
    """A heading, and what each term means: beside it in one column for the whole page, or below on a narrow screen."""
    if not rows:
        return
    column = most_cells + 2 if formatter.width >= most_cells + 30 else 6
    formatter.write(f"\n{heading}:\n")
    for term, meaning in rows:
        lines = broken(" ".join(meaning.split()), formatter.width - column, at_hyphens=False)
        beside = len(term) + 4 <= column
        if beside:
            formatter.write(f"  {term:<{column - 2}}{lines.pop(0)}".rstrip() + "\n")
        else:
            formatter.write("".join(f"  {line}\n" for line in _term(term, formatter.width - 2)))
        formatter.write("".join(f"{' ' * column}{line}\n" for line in lines))


def _term(term: str, width: int) -> list[str]:
    """An option with its values, on further lines after a bar where they are many."""
    lines = [""]
    for piece in term.replace("|", "|\0").split("\0"):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("      ")
        lines[-1] += piece
    return lines


def _command_line(example: str) -> list[str]:
    """The example as a shell reads it, on further lines before an option where it is long."""
    lines = [""]
    for piece in example.replace(" --", "\0--").split("\0"):
        longer = f"{lines[-1]} {piece}".strip() if len(lines) == 1 else f"{lines[-1]} {piece}"
        if lines[-1] and len(longer) > _width() - 4:
            lines[-1] += " \\"
            lines.append(f"    {piece}")
        else:
            lines[-1] = longer
    return lines
