"""`unbackdoor demo`."""

from __future__ import annotations

from typing import Any

from unbackdoor.cli_help import Command
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.commands.options import RESULT_OPTIONS, made
from unbackdoor.commands.printing import end_if_not_judged, show_report
from unbackdoor.laboratory import DemoSettings


def command() -> Command:
    """Its options and its help."""
    return made(
        "demo",
        "Build two backdoored micro models, cleanse them in four ways, and compare with controls.",
        _run,
        [*options_of(DemoSettings), *RESULT_OPTIONS],
        "--out runs/demo",
    )


def _run(**values: Any) -> None:
    from unbackdoor.demo import run_demo

    (given,) = distribute(values, None, DemoSettings)
    report = run_demo(DemoSettings.make(given), values["out"], overwrite=values["overwrite"], resume=values["resume"])
    show_report(report, values["out"], values["as_json"])
    end_if_not_judged(report)
