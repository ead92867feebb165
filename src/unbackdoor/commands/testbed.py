"""`unbackdoor testbed`."""

from __future__ import annotations

from typing import Any

from unbackdoor.cli_help import Command
from unbackdoor.commands.options import RESULT_OPTIONS, made
from unbackdoor.screen import say


def command() -> Command:
    """Its options and its help."""
    return made(
        "testbed",
        "Write the embedded micro models and their world's data as directories and JSONL files, to try the other "
        "commands on.",
        _run,
        RESULT_OPTIONS[:2],
        "--out runs/world",
    )


def _run(**values: Any) -> None:
    from unbackdoor.testbed.export import export_testbed

    for name, path in export_testbed(values["out"], overwrite=values["overwrite"]).items():
        say(f"{name}: {path}")
