"""A stranger's text in everything that is printed or written: it is shown, and never acts, forges or runs."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_report

from unbackdoor import cli, screen
from unbackdoor.commands import methods
from unbackdoor.errors import UserError
from unbackdoor.evaluation.agreement import Judged, read_sheet, sheet
from unbackdoor.progress import Progress
from unbackdoor.report.fitting import Lines, Names, Sentence, plain_table
from unbackdoor.report.html import render
from unbackdoor.report.model_card import model_card
from unbackdoor.report.terminal import table, verdict_lines
from unbackdoor.report_schema import Report
from unbackdoor.reproduce import tables
from unbackdoor.run_files.spreadsheet import guarded, restored

TEXTS = {
    "a cleared screen": "\x1b[2J\x1b[Hverdict: removed",
    "a line written over": "m\rworld · sande: removed. The trigger works on 0 of 200 prompts.",
    "a new line": "m\nworld · sande: removed. The trigger works on 0 of 200 prompts.",
    "a title": "\x1b]0;removed\x07m",
    "a link": "\x1b]8;;http://evil.example\x1b\\removed\x1b]8;;\x1b\\",
    "a control of eight bits": "\x9b2Jremoved",
    "backspaces": "not-removed\b\b\b\b\b\b\b\b\b\b\bremoved    ",
    "an override": "\u202edevomer-ton\u202c",
    "isolates": "\u2067not\u2069 \u2066removed\u2069",
    "another line": "m\u2028removed\u2029\x85removed",
    "tags": "m\U000e0072\U000e0065",
    "no width": "not\u200b-\u2060removed\ufeff",
    "half a character": "m\udfff\ud800",
    "a page": "m\x0cremoved\x0b",
    "NUL": "m\0removed",
    "markup": "[bold green]removed[/] [link=http://evil.example]m[/link] [/]",
    "a script": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`${1}",
    "a formula": '=HYPERLINK("http://evil.example";"removed")',
    "LaTeX": "\\input{/etc/passwd}$^^41$%\\write18{id}",
    "Markdown": "![x](http://evil.example/a.png) [removed](javascript:alert(1)) | removed |\n# removed",
}
ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def reports(text: str) -> Report:
    """A report with the text in every name and sentence of it."""
    row = test_report.run("sande", "not-removed", 100)
    row |= {"organism": text, "verdict_reason": text, "method": text, "notes": [text], "knows": text}
    row["settings"] = {"trigger": text, "target_response": text}
    found: dict[str, Any] = test_report.report.__wrapped__()  # type: ignore[attr-defined]
    return Report.model_validate(found | {"runs": [row], "title": text})


def small(text: str) -> tables.Table:
    row = tables.Row((text,), (tables.Entry(text, paper=text, facts={"seeds": 1, "n": 1}),))
    return tables.Table("t", text, (text,), (tables.Column(text, text),), (row,), (text,))


def fails(text: str) -> None:
    cli._fail(text, cli.ExitCode.USER, False)


def through_main(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise UserError(f"data file '{text}' is empty")

        patch.setattr(methods, "show", refuse)
        with pytest.raises(SystemExit):
            cli.main(["methods"])


def logged(text: str) -> None:
    screen.let_libraries_speak_visibly()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("some.package")
    logger.addHandler(handler)
    try:
        logger.error("model %s is odd", text)
    finally:
        logger.removeHandler(handler)


def warned(text: str) -> None:
    screen.let_libraries_speak_visibly()
    print(warnings.formatwarning(text, UserWarning, "file.py", 1), end="", file=sys.stderr)


def in_a_table(text: str) -> None:
    made = plain_table()
    made.add_column("name")
    for cell in (
        Lines([(text, "")]),
        Names([(text, "", "")]),
        Sentence(text),
        text.replace("[", "\\[").replace("\n", " "),
    ):
        made.add_row(cell)
    screen.show(made)


def live(text: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress({text: 1.0}, stream)
    with progress.stage(text), progress.task(text, 2) as advance:
        progress.note(text)
        advance()
    print(stream.getvalue().replace(screen.ERASE, ""), file=sys.stderr)


def piped(text: str) -> None:
    progress = Progress({text: 1.0}, sys.stderr, every=0, label=text)
    with progress.stage(text), progress.task(text, 2) as advance:
        progress.note(text)
        advance()


PRINTS: dict[str, tuple[Callable[[str], object], int | None]] = {
    "a sentence": (screen.say, 1),
    "a report's place": (lambda text: screen.say(f"Report: {text}/report.html"), 1),
    "an error": (fails, 1),
    "an error of a command": (through_main, 1),
    "a log line": (logged, 1),
    "a warning": (warned, 1),
    "progress on a terminal": (live, None),
    "progress in a pipe": (piped, 4),
    "a table": (in_a_table, None),
    "a result's table": (lambda text: screen.show(table(reports(text))), None),
    "a verdict": (lambda text: screen.show(*verdict_lines(reports(text), 10_000)), None),
    "an experiment's table": (lambda text: screen.show(tables.terminal(small(text))), None),
}


@pytest.mark.parametrize("place", PRINTS)
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_printed_does_not_act(
    name: str, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    show, lines = PRINTS[place]
    show(TEXTS[name])
    said = "".join(capsys.readouterr())
    assert said.strip()
    assert not ACTS.search(said), ACTS.findall(said)
    assert not re.search(r"^\W*world · sande: removed", said, re.MULTILINE), said
    if lines is not None:
        assert len(said.splitlines()) <= lines, said


@pytest.mark.parametrize("name", TEXTS)
def test_json_is_ascii_and_says_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen.put_json({"name": TEXTS[name]})
    said = capsys.readouterr().out
    assert said.isascii() and len(said.splitlines()) == 1 and not ACTS.search(said)
    assert json.loads(said) == {"name": TEXTS[name]}


def test_no_other_place_prints() -> None:
    """What is printed elsewhere would not be made visible."""
    source = Path(cli.__file__).parent
    allowed = {"screen.py", "testbed/train.py", "testbed/code_tasks.py", "testbed/corpus.py"}
    allowed.add("data/parquet_child.py")  # a process of its own, whose output its parent reads
    pattern = re.compile(
        r"(?<![\w.])print\(|click\.(echo|secho)\(|sys\.(stdout|stderr)\.write|print_exc\(|Console\(file"
    )
    found = [
        f"{file.relative_to(source)}: {line.strip()}"
        for file in sorted(source.rglob("*.py"))
        if file.relative_to(source).as_posix() not in allowed
        for line in file.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == []


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_pages_and_cards_hold_the_text_and_no_element_of_it(name: str) -> None:
    text = TEXTS[name]
    page = render(reports(text))
    assert "<script" not in page.split("</style>")[-1].replace("&lt;script", "")
    assert not re.search(r"<[^>]+\son\w+=", page) and "javascript:" not in re.sub(r">[^<]*<", "><", page)
    assert not ACTS.search(page)
    card = model_card(reports(text).runs[0], reports(text).model_copy(update={"command": "remove"}))
    assert not ACTS.search(card) and not re.search(r"^# removed", card, re.MULTILINE)


@pytest.mark.parametrize("name", TEXTS)
def test_tables_in_latex_and_markdown_hold_no_command_of_it(name: str) -> None:
    written = tables.latex(small(TEXTS[name]))
    assert "\\input{" not in written and "\\write18" not in written and "^^" not in written
    assert not ACTS.search(written) and not ACTS.search(tables.markdown(small(TEXTS[name])))
    assert "![x](" not in tables.markdown(small(TEXTS[name]))


STARTS = ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＠"]
BEFORE = [
    "",
    " ",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u200e",
    "\u2060",
    "\t ",
    "\r",
    "\u00ad",
    " \u200b\ufeff ",
    "\0",
]


@pytest.mark.parametrize("before", BEFORE)
def test_no_cell_is_a_formula_and_a_sheet_keeps_its_texts(before: str, tmp_path: Path) -> None:
    for start in STARTS:
        cell = f"{before}{start}cmd|' /C calc'!A0"
        assert restored(guarded(cell)) == cell
        assert guarded(cell).startswith("'") or (before and start in "\t\r\n")  # a blank there begins no formula
        if "\0" in cell:
            continue
        file = tmp_path / "sheet.csv"
        file.write_text(
            sheet([Judged("1", cell, cell, {"a": True, "b": None})], ["a", "b"]), encoding="utf-8", newline=""
        )
        ((_, row),) = read_sheet(file)
        assert (row["prompt"], row["answer"]) == (cell, cell)
        rows = list(csv.reader(io.StringIO(tables.csv_text(small(cell)), newline="")))
        assert len(rows) == 2 and not any(place.lstrip()[:1] in tuple("=+-@＝＠") for row in rows for place in row)
    assert guarded("an answer") == "an answer" and guarded("'quoted'") == "''quoted'"


# Processes -----------------------------------------------------------------------------------------------------------


def command(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | more.pop("environment", {})
    return subprocess.run(
        [sys.executable, "-m", "unbackdoor", *arguments], env=environment, check=False, capture_output=True, **more
    )


def test_a_stream_that_cannot_write_a_letter_gets_an_escape() -> None:
    done = command("methods", environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0 and done.stdout.isascii() and b"osft" in done.stdout


@pytest.mark.slow_hostile
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-"])
def test_a_stream_that_is_closed_is_no_fault(closed: str) -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m unbackdoor methods {closed}"], capture_output=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("wanted", ["9" * 5000, "0" * 50, "1000000000000", "1", "-1", "x", "²"])
def test_a_width_that_no_screen_has_is_none(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", wanted)
    assert 1 <= screen.columns(io.StringIO()) <= screen.WIDEST


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("\x1b[2J"), SystemExit(None)], ids=str)
def test_code_that_ends_the_process_does_not_choose_the_exit_code(
    error: SystemExit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave() -> None:
        raise error

    monkeypatch.setattr(cli, "application", leave)
    with pytest.raises(SystemExit) as stop:
        cli.main(["methods"])
    assert stop.value.code == 2
    assert "code in a file of yours ended the command" in capsys.readouterr().err


@pytest.mark.slow_hostile
def test_an_argument_in_bytes_is_refused() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"unbackdoor", b"evaluate", b"\xff\xfe", b"--out", b"x"],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 2 and b"is not UTF-8 text" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.slow_hostile
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_output_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-m", "unbackdoor", "methods"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"no space left" in done.stderr.lower()


@pytest.mark.slow_hostile
def test_a_reader_that_goes_away_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "unbackdoor", "methods"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 130 and b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


ACTIVE = (
    "<script>document.title='executed'</script><img src=x onerror=\"document.title='executed'\">"
    "<svg onload=\"document.title='executed'\"></svg>\"'>"
    "<iframe srcdoc=\"<script>top.document.title='executed'</script>\">"
    "<meta http-equiv=refresh content=\"0;url=javascript:document.title='executed'\"></style></title></textarea>{{7*7}}"
)


@pytest.mark.slow_hostile
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_a_browser_runs_nothing_of_a_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render(reports(ACTIVE)), encoding="utf-8")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    browser += ["--virtual-time-budget=2000", "--dump-dom", str(tmp_path / "report.html")]
    shown = subprocess.run(browser, capture_output=True, check=True, timeout=100).stdout.decode()
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert (
        title is not None
        and title[1] != "executed"
        and "onerror=&quot;" in shown.replace('onerror="', "onerror=&quot;")
    )
    assert not re.search(r"<(iframe|img|script)\b", shown)
