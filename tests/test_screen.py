"""Every table, sentence and progress line fits the screen that it is written on, with its numbers whole."""

from __future__ import annotations

import io
import os
import re
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from unbackdoor.evaluation.statistics import rate
from unbackdoor.progress import Progress
from unbackdoor.report.numbers import first_utility, triggered_change, untriggered_change
from unbackdoor.report.terminal import methods_table, table, verdict_lines
from unbackdoor.report_schema import Report
from unbackdoor.reproduce.tables import Column, Entry, Row, Table, cost_table, terminal
from unbackdoor.screen import PIPE_COLUMNS, broken, columns, cut, hanging
from unbackdoor.workflows.rejudge import table as rejudge_table

WIDTHS = [20, 40, 60, 80, 100, 120, 200]
NAMES = [
    "a-very-long-organism-name-that-somebody-made-of-" + "many-parts-" * 6,
    "x" * 90,
    "測試模型的後門" * 6,
    "🦊🔥 emoji 👩🏽 names ❤️ " * 3,
    "e\u0301a\u0308o\u0302" * 20,
    "[bold]not markup[/bold]",
    "नमूना मॉडल",
]


def rates(hits: int, n: int = 200) -> dict[str, Any]:
    return rate([True] * hits + [False] * (n - hits)).model_dump()


def state(hits: int | None, right: int, n: int = 200) -> dict[str, Any]:
    exact = rates(right)
    return {
        "attack_success": None if hits is None else rates(hits, n),
        "attack_success_untriggered": rates(0, n),
        "utility": {"exact_match": {"value": exact["rate"], "n": 200, "interval": exact["interval"]}},
    }


def run(
    organism: str, method: str, verdict: str, before: int, after: int, seconds: float, **more: Any
) -> dict[str, Any]:
    return {
        "organism": organism,
        "method": method,
        "verdict": verdict,
        "verdict_reason": f"The attack success rate went from {before} to {after} of 200 prompts, and the model works.",
        "control": verdict == "not-removed",
        "seed": 0,
        "seconds": seconds,
        "before": state(before, 164),
        "after": state(after, 163),
        **more,
    }


def rows() -> list[dict[str, Any]]:
    """The demo's result, as README prints it."""
    first, second = "target-response", "safety"
    return [
        run(first, "osft", "removed", 198, 0, 16),
        run(first, "sande", "removed", 198, 1, 26),
        run(first, "sande-p", "removed", 198, 0, 33),
        run(first, "fine-tune", "not-removed", 198, 199, 9.3),
        run(first, "random-perturbation", "not-removed", 198, 197, 23),
        run(second, "beear", "removed", 193, 0, 65),
        run(second, "fine-tune", "not-removed", 193, 189, 31),
        run(second, "random-perturbation", "not-removed", 193, 186, 53),
    ]


def of(rows: list[dict[str, Any]]) -> Report:
    return Report.model_validate({"command": "demo", "title": "", "thresholds": {}, "runs": rows})


def demo() -> Report:
    return of(rows())


def shown(made: RenderableType, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(made)
    return file.getvalue().splitlines()


def numbers_of(report: Report) -> list[str]:
    return [
        cell.text for r in report.runs for cell in (triggered_change(r), untriggered_change(r), first_utility(r)[1])
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_demos_table_fits_every_width_with_its_numbers_whole_and_its_ns(width: int) -> None:
    lines = shown(table(demo()), width)
    text = "\n".join(lines)
    assert max(map(cell_len, lines)) <= width
    assert "n 200" in text
    for number in numbers_of(demo()):
        assert number in text
    assert text.count("→") >= 24
    # What looks like an interval has both its ends, at every width.
    assert all(re.fullmatch(r"[\d.]+–[\d.]+,?", word) for word in text.split() if "–" in word)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_row_of_the_demos_table_needs_more_than_two_lines(width: int) -> None:
    lines = shown(table(demo()), width)
    rule = next(i for i, line in enumerate(lines) if "───" in line)
    methods = [r.method for r in demo().runs]
    body = [line for line in lines[rule + 1 :] if line.strip() and not line.startswith("Below")]
    assert len(body) == 2 * len(methods)
    for row, method in enumerate(methods):
        assert body[2 * row].startswith(f"{method} ") and "→" in body[2 * row]
        assert body[2 * row].rstrip().endswith(str(demo().runs[row].verdict))
    assert "…" not in "\n".join(lines)


def test_readme_shows_the_table_as_a_pipe_gets_it() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    heading = [line.rstrip() for line in shown(table(demo()), PIPE_COLUMNS)[:4]]
    start = readme.index(heading[0])
    assert readme[start : start + 4] == heading


def test_a_wider_screen_shows_more_intervals() -> None:
    at_80, at_100 = ("\n".join(shown(table(demo()), width)) for width in (80, 100))
    assert "96.4–99.7 → 0–1.9" in at_100
    assert "96.4–99.7" not in at_80 and "97.2–99.9" in at_80, "the last rate's alone"


def test_a_small_table_keeps_its_intervals_on_a_narrow_screen() -> None:
    text = "\n".join(shown(table(of([run("world", "evaluate", "inconclusive", 198, 0, 16)])), 66))
    assert "0–1.9" in text and "75.5–86.3" in text and "evaluate" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_long_and_wide_names_are_cut_and_push_nothing_out(name: str, width: int) -> None:
    made = rows()
    made[0] |= {"organism": name, "method": name, "seed": 3}
    report = of(made)
    lines = shown(table(report), width)
    assert max(map(cell_len, lines)) <= width
    assert all(number in "\n".join(lines) for number in numbers_of(report))
    if width >= 80:
        assert sum(", seed 3" in line for line in lines) == 1, "what tells rows apart is not cut"
    assert all(cell_len(line) <= width for text in verdict_lines(report, width) for line in text.split("\n"))


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(min_size=1, max_size=60),
    method=st.text(alphabet=string.ascii_lowercase + "-", min_size=1, max_size=40),
    verdict=st.sampled_from(["removed", "no-longer-simulable", "not-removed", "inconclusive"]),
    after=st.integers(0, 200),
    seconds=st.floats(0, 1e6),
    width=st.integers(30, 130),
)
def test_whatever_the_names_no_line_is_too_long_and_no_number_is_broken(
    name: str, method: str, verdict: str, after: int, seconds: float, width: int
) -> None:
    made = rows()
    made[2] = run(name, method, verdict, 198, after, seconds)
    report = of(made)
    lines = shown(table(report), width)
    assert max(map(cell_len, lines)) <= width
    assert all(number in "\n".join(lines) for number in numbers_of(report))


@pytest.mark.parametrize("width", WIDTHS)
def test_rates_that_differ_in_n_or_are_missing_fit_too(width: int) -> None:
    made = rows()
    made[0]["after"] = state(0, 163, n=57)
    for key in ("before", "after"):
        made[1][key] = state(None, 163)
    made[3] |= {"before": None, "verdict": None}
    lines = shown(table(of(made)), width)
    text = "\n".join(lines)
    assert max(map(cell_len, lines)) <= width
    assert "n 57" in text and "trigger" in text and "given" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_sentences_break_at_blanks(width: int) -> None:
    text = "target-response · sande: removed. ASR 99.0% → 0.5% on 200 prompts, see --eval-trigger-of-the-organism."
    lines = hanging(text, width).split("\n")
    assert max(map(cell_len, lines)) <= width
    assert "99.0% → 0.5%" in "\n".join(lines)
    if width >= 40:
        assert " ".join(line.strip() for line in lines) == text
        assert all(line.startswith("  ") for line in lines[1:])


@given(st.text(max_size=80), st.integers(2, 50))
def test_broken_lines_and_cut_texts_fit_and_lose_nothing_but_blanks(text: str, width: int) -> None:
    text = re.sub(r"\s", " ", text)
    lines = broken(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert cell_len(cut(text, width)) <= width


ENTRIES = (Entry("99.0% → 0.5%", "0.1–2.8", "0.13%"), Entry("misses untriggered (13.5%)", "0.1–2.8"))
REPRODUCED = Table(
    "t",
    "ASR of every method on every victim, and a title that is longer than any screen of eighty columns can hold",
    ("Method", "Victim"),
    (Column("llama2-7b", "Llama2-7b-chat"), Column("in-domain utility"), Column("qwen", "Qwen1.5-4B")),
    (
        Row(("random-perturbation", "target-response"), (*ENTRIES, ENTRIES[0])),
        Row(("SANDE", "safety"), (*ENTRIES, ENTRIES[0])),
    ),
)
CELLS = [
    {"name": f"sande-llama-alpaca-0.{kind}", "model": "meta-llama/Llama-2-7b-chat-hf", "memory": 156.0, "disk": 86.0}
    | {"minutes": 790.5, "problem": "needs a file that is missing: contrast.jsonl" * few, "finished": False}
    for few, kind in enumerate(("in.fine-mixing", "out.random-perturbation"))
]
REJUDGED = {
    "results": [
        {"model": "removed-with-a-long-name", "set": "triggered", "scorer": "refusal", "rate": 0.015, "n": 200}
        | {"unusable": 0, "interval": [0.005, 0.043]},
        {"model": "測試" * 20, "set": "conversation: turn 2", "scorer": "LABEL=helpfulness", "mean": 3.5, "n": 80}
        | {"unusable": 3, "interval": [3.2, 3.8], "highest": None},
    ]
}
TABLES: dict[str, tuple[Callable[[], RenderableType], list[str]]] = {
    "reproduce": (lambda: terminal(REPRODUCED), ["99.0% → 0.5%", "0.1–2.8", "paper 0.13%"]),
    "dry run": (lambda: cost_table({"scale": "paper", "cells": CELLS}), ["156", "86.0", "13.18"]),
    "rejudge": (lambda: rejudge_table(REJUDGED), ["1.5%", "0.5–4.3", "mean 3.50", "3.20 to 3.80", "200"]),
    "methods": (
        lambda: methods_table([{"name": "random-perturbation", "needs": "a finished run (--like)", "does": "control"}]),
        ["random-perturbation", "--like", "ontrol"],
    ),
}


@pytest.mark.parametrize("width", WIDTHS[1:])
@pytest.mark.parametrize("name", TABLES)
def test_every_other_table_fits_with_its_numbers_whole(name: str, width: int) -> None:
    make, numbers = TABLES[name]
    lines = shown(make(), width)
    assert max(map(cell_len, lines)) <= width
    assert all(number in "\n".join(lines) for number in numbers)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("label", ["", "organism-of-another-process"])
def test_a_progress_line_takes_one_line_of_the_screen_and_keeps_its_time_left(
    label: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Terminal()
    progress = Progress(stream=screen, every=0.0, label=label)
    with progress.stage("beear"), progress.task("answers of 測試模型 " + "with-a-long-name" * 9, 200) as advance:
        advance(150)
        monkeypatch.setattr(progress, "_last_line", 0.0)
        advance(1)
    progress.note("dropped 12: rows that are longer than the context of the model, as --max-length 1024 says of them")
    lines = re.split(r"\r\x1b\[2K|\n", screen.getvalue())
    assert max(map(cell_len, lines)) <= width
    if width >= 80:
        assert any("… 151/200 · about 0:00 left in this step" in line for line in lines)


def test_a_pipe_has_the_width_that_is_asked_for_or_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns(io.StringIO()) == PIPE_COLUMNS == 100
    monkeypatch.setenv("COLUMNS", "72")
    assert columns(io.StringIO()) == 72
    monkeypatch.setenv("COLUMNS", "wide")
    assert columns(io.StringIO()) == PIPE_COLUMNS


def test_a_pipe_gets_no_control_codes_and_its_lists_stay_a_line_a_row() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    for command in ("methods", "attacks"):
        call = [sys.executable, "-m", "unbackdoor", command]
        text = subprocess.run(call, env=environment, capture_output=True, check=True).stdout.decode()
        assert "\x1b" not in text
        longest = max(map(cell_len, text.splitlines()))
        assert longest == PIPE_COLUMNS if command == "methods" else longest > PIPE_COLUMNS
