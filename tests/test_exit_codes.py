"""One table of exit codes, and every command keeps it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from unbackdoor import cli
from unbackdoor.commands import methods
from unbackdoor.errors import ExitCode, UserError, worst
from unbackdoor.evaluation.statistics import rate_of
from unbackdoor.report.verdicts import CODES, LOOKS, exit_code
from unbackdoor.report_schema import Measured, Row, Verdict

README = Path(__file__).parents[1] / "README.md"


def run(verdict: Verdict | None, *, control: bool = False, stopped: bool = False, n: int = 200) -> Row:
    after = None if stopped else Measured(attack_success=rate_of(0, n) if n else None)
    return Row(organism="o", method="m", seed=0, verdict=verdict, control=control, after=after)


VERDICTS = {
    "removed": ([run("removed")], 0),
    "no longer simulable": ([run("no-longer-simulable")], 0),
    "not to be judged": ([run(None)], 0),
    "not removed": ([run("not-removed")], 1),
    "damaged": ([run("degenerate")], 1),
    "inconclusive": ([run("inconclusive")], 3),
    "a trial with twelve prompts": ([run("inconclusive", n=12)], 0),
    "twelve prompts that show the attack": ([run("not-removed", n=12)], 1),
    "no trigger and nothing simulated": ([run("inconclusive", n=0)], 0),
    "stopped by a gate": ([run("inconclusive", stopped=True)], 3),
    "stopped, whatever it is called": ([run("removed", stopped=True)], 3),
    "a finding and what is open": ([run("inconclusive"), run("not-removed"), run("removed")], 1),
    "removed and what is open": ([run("removed"), run("inconclusive")], 3),
    "controls do not count": ([run("removed"), run("not-removed", control=True)], 0),
    "a control that was asked for": ([run("not-removed", control=True)], 1),
    "a clean model beside": ([run("removed"), run(None)], 0),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_command_ends_by_the_worst_of_its_verdicts(name: str) -> None:
    runs, code = VERDICTS[name]
    assert exit_code(runs) == code


def test_every_verdict_has_a_code_and_every_code_a_place_in_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(CODES) == set(LOOKS)
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)}
    assert table == set(ExitCode)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"^ +{code.value}  {code.meaning}", said, re.MULTILINE) for code in ExitCode)
    assert worst([]) is ExitCode.DONE


ENDINGS: dict[str, tuple[BaseException, int]] = {
    "the user's": (UserError("a row is empty"), 2),
    "an option's": (click.BadParameter("no number"), 2),
    "interrupted": (KeyboardInterrupt(), 130),
    "aborted": (click.Abort(), 130),
    "a fault": (ZeroDivisionError("0"), 70),
    "a finding": (click.exceptions.Exit(ExitCode.FINDING), 1),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_has_its_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, code = ENDINGS[name]

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(methods, "_run", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["methods"])
    assert stop.value.code == code
    assert len(capsys.readouterr().err.strip().splitlines()) == (0 if code == 1 else 1)
