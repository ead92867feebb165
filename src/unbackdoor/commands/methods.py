"""`unbackdoor methods`."""

from __future__ import annotations

from unbackdoor.cli_help import Command
from unbackdoor.commands.options import JSON_OPTION, made
from unbackdoor.knowledge import described
from unbackdoor.methods import method_classes
from unbackdoor.screen import put_json, show


def command() -> Command:
    """Its options and its help."""
    return made(
        "methods",
        "List the removal methods and what each must be given.",
        _run,
        [JSON_OPTION],
        "",
    )


def _run(as_json: bool) -> None:
    rows = [
        {"name": m.name, "needs": described(m.needs), "does": m.summary, "control": m.control} for m in method_classes()
    ]
    if as_json:
        put_json(rows)
        return
    from unbackdoor.report.terminal import methods_table

    show(methods_table(rows))
