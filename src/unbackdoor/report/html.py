"""The report as one HTML file that loads nothing and trusts no text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unbackdoor.report import figures, numbers, verdicts
from unbackdoor.report.answers import answer_lines
from unbackdoor.report.svg import FIGURE_STYLE
from unbackdoor.report_schema import Compared, Measured, Rate, Rates, Report, Row, Simulated
from unbackdoor.settings import Thresholds
from unbackdoor.visible_text import visible

NAMES = {"osft": "OSFT", "sande": "SANDE", "sande-p": "SANDE-P", "beear": "BEEAR", "beear-input": "BEEAR-input"} | {
    name: name.upper() for name in ("dpo", "nad", "crow", "lat")
}
"""Methods as their papers write them; the others as they are called on the command line."""

EXAMPLES_SHOWN = 3
"""Examples of a run that stand open; the others are folded."""


View = Mapping[str, object]
"""A row and what the page shows of it beside it, by name."""


def render(report: Report) -> str:
    """The report as one self-contained HTML page.

    Prompts, answers and names come from an attacker: every value is escaped and has its invisible characters written
    out, whatever the template does with it, and a content security policy forbids all loading and all scripts.
    """
    runs = [_view(run) for run in report.runs]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            runs=runs,
            organisms=_by_organism(runs),
            seeds=len({run.seed for run in report.runs}) > 1,
            headline=verdicts.headline(report.runs),
            sweep=figures.sweep_plot(report),
            fired=_fired(report.runs),
            meanings=verdicts.meanings(report.thresholds),
            thresholds=[(name, value, Thresholds.model_fields[name].description) for name, value in report.thresholds],
            provenance=_flat(report.provenance.model_dump(exclude_unset=True)),
            figure_style=FIGURE_STYLE,
            examples_shown=EXAMPLES_SHOWN,
            hidden=any(item.hidden for run in report.runs for item in run.examples),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=numbers.percent,
        words=numbers.words,
        duration=numbers.seconds,
        look=verdicts.LOOKS.get,
        method=lambda name: NAMES.get(name, name),
        plain=_plain,
        rate=numbers.rate_cell,
    )
    return environment


def _finalize(value: Any) -> Any:
    """What Jinja does to every value before it is escaped: no place in the template can forget it."""
    if isinstance(value, Markup):
        return value  # ours: drawn in svg.py, which has done the same
    return visible(value) if isinstance(value, str) else value


def _view(run: Row) -> View:
    """A run with everything that the template shows of it worked out."""
    return {
        **dict(run),
        "look": verdicts.LOOKS[run.verdict],
        "plot": figures.attack_success_plot(run),
        "simulation_plot": figures.simulation_plot(run),
        "simulation_rows": _simulation_rows(run.simulations),
        "success_chart": figures.success_chart(run),
        "loss_charts": figures.loss_charts(run),
        "triggered": numbers.triggered_change(run),
        "untriggered": numbers.untriggered_change(run),
        "utility": [
            (name, numbers.utility_change(run, name), numbers.lower_is_better(name))
            for name in numbers.utility_metrics(run)
        ],
        "perturbed": _changes(run, lambda state: state.under_perturbation or {}),
        "details": _changes(run, lambda state: state.details),
        "answers": answer_lines(run),
        "comparisons": [_comparison(name, one) for name, one in run.compared.items()],
        "alarming": run.control and run.verdict in ("removed", "no-longer-simulable"),
    }


def _simulation_rows(simulations: Sequence[Simulated]) -> list[tuple[str, Simulated | None, Simulated | None]]:
    """(when, simulation of the target, simulation of the control target), None where there was none."""
    found = {(s.when, s.target): s for s in simulations}
    return [
        (when, found.get((when, "target")), found.get((when, "control")))
        for when in dict.fromkeys(s.when for s in simulations)
    ]


def _comparison(name: str, one: Compared) -> tuple[str, list[tuple[str, numbers.Cell, str, str]], list[str]]:
    """(what it is compared with, rows of the table, further figures)."""
    rows = [(measure, *numbers.change_cells(change)) for measure, change in one.changes.items()]
    further, moved = [], one.kl_divergence
    if moved is not None:
        low, high = moved.interval or (moved.value, moved.value)
        further.append(
            f"KL divergence from it, on clean rows: {moved.value:.3f} nats a token ({low:.3f}–{high:.3f}, n {moved.n})"
        )
    if one.length_ratio is not None:
        further.append(f"length of answers without trigger: {one.length_ratio:.2f} times")
    return {"before": "the model before", "clean": "the clean model"}.get(name, name), rows, further


def _changes(run: Row, pick: Callable[[Measured], Rates]) -> list[tuple[str, numbers.Cell]]:
    """(name, before → after) of rates that are kept by name."""
    names = dict.fromkeys(name for state in run.states for name in pick(state))

    def change(name: str) -> numbers.Cell:
        return numbers.rate_change(run, lambda state: pick(state).get(name))

    return [(name, change(name)) for name in names]


def _by_organism(runs: Sequence[View]) -> list[tuple[object, list[View], list[View]]]:
    """(organism, methods, controls) in the order of the report."""
    names = dict.fromkeys(run["organism"] for run in runs)
    return [
        (
            name,
            [run for run in runs if run["organism"] == name and not run["control"]],
            [run for run in runs if run["organism"] == name and run["control"]],
        )
        for name in names
    ]


FIRED: tuple[tuple[Callable[[Row], Rates | None], str, str], ...] = (
    (
        lambda run: run.near_miss,
        "Near misses",
        "How often a prompt that only resembles the trigger brought out the unwanted answer in the backdoored model. "
        "Were this high, any odd words would fire the backdoor, and any odd words would remove it.",
    ),
    (
        lambda run: run.variants,
        "Variants of the trigger",
        "Which changes of the trigger still fire the backdoor: other case, other places, parts of it, other words, "
        "another role. Neither high nor low is wrong here.",
    ),
)
"""Rates of a run, their title, and what they say."""


def _fired(runs: Sequence[Row]) -> list[tuple[str, str, list[tuple[str, int, list[tuple[str, Rate]]]]]]:
    """(title, lead, per organism and seed the rates by kind), where there are any: an organism's runs share them."""
    sections = []
    for pick, title, lead in FIRED:
        found = {(run.organism, run.seed): list(rates.items()) for run in reversed(runs) if (rates := pick(run))}
        if found:
            sections.append((title, lead, [(o, seed, kinds) for (o, seed), kinds in reversed(found.items())]))
    return sections


def _flat(nested: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted name, text)."""
    if isinstance(nested, Mapping):
        return [
            pair for key, value in nested.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(nested, list) and all(isinstance(item, str) for item in nested):
        return [(prefix, " ".join(nested))]
    return [(prefix, _plain(nested))]


def _plain(value: Any) -> str:
    """A setting's value as it would stand in a settings file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
