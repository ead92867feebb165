"""The report as one HTML file that loads nothing and trusts no text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unbackdoor.report import figures, numbers, verdicts
from unbackdoor.report.answers import answer_lines
from unbackdoor.report.svg import FIGURE_STYLE
from unbackdoor.report.visible import visible
from unbackdoor.settings import Thresholds

NAMES = {"osft": "OSFT", "sande": "SANDE", "sande-p": "SANDE-P", "beear": "BEEAR", "beear-input": "BEEAR-input"} | {
    name: name.upper() for name in ("dpo", "nad", "crow", "lat")
}
"""Methods as their papers write them; the others as they are called on the command line."""

EXAMPLES_SHOWN = 3
"""Examples of a run that stand open; the others are folded."""

OPTIONAL: Mapping[str, Any] = {
    "notes": (),
    "counts": {},
    "settings": {},
    "examples": (),
    "simulations": (),
    "knows": "",
    "verdict_reason": "",
}
"""What a run may leave out, as an evaluation does."""


def render(report: Mapping[str, Any]) -> str:
    """The report as one self-contained HTML page.

    Prompts, answers and names come from an attacker: every value is escaped and has its invisible characters written
    out, whatever the template does with it, and a content security policy forbids all loading and all scripts.
    """
    runs = [_view(run) for run in report["runs"]]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            runs=runs,
            organisms=_by_organism(runs),
            seeds=len({run["seed"] for run in runs}) > 1,
            headline=verdicts.headline(report["runs"]),
            sweep=figures.sweep_plot(report),
            fired=_fired(report["runs"]),
            meanings=verdicts.meanings(report["thresholds"]),
            thresholds=_thresholds(report["thresholds"]),
            provenance=_flat(report["provenance"]),
            figure_style=FIGURE_STYLE,
            examples_shown=EXAMPLES_SHOWN,
            hidden=any(item.get("hidden") for run in runs for item in run["examples"]),
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
        look=verdicts.look,
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


def _view(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with everything that the template shows of it worked out."""
    states = [(when, run[when]) for when in ("before", "after") if run.get(when) is not None]
    return {
        **OPTIONAL,
        **run,
        "look": verdicts.look(run["verdict"]),
        "plot": figures.attack_success_plot(run),
        "simulation_plot": figures.simulation_plot(run),
        "simulation_rows": _simulation_rows(run.get("simulations") or ()),
        "success_chart": figures.success_chart(run),
        "loss_charts": figures.loss_charts(run),
        "triggered": numbers.rate_change(run, "attack_success"),
        "untriggered": numbers.rate_change(run, "attack_success_untriggered"),
        "utility": [
            (name, numbers.utility_change(run, name), numbers.lower_is_better(name))
            for name in numbers.utility_metrics(run)
        ],
        "perturbed": _changes(run, [state.get("under_perturbation") for _, state in states]),
        "details": _changes(run, [state.get("details") for _, state in states]),
        "answers": answer_lines(run),
        "comparisons": _comparisons(run.get("compared") or {}),
        "alarming": bool(run["control"]) and run["verdict"] in ("removed", "no-longer-simulable"),
    }


def _simulation_rows(simulations: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any, Any]]:
    """(when, simulation of the target, simulation of the control target), None where there was none."""
    found = {(s["when"], s["target"]): s for s in simulations}
    return [
        (when, found.get((when, "target")), found.get((when, "control")))
        for when in dict.fromkeys(s["when"] for s in simulations)
    ]


def _comparisons(compared: Mapping[str, Any]) -> list[tuple[str, list[Any], list[str]]]:
    """(what it is compared with, rows of the table, further figures)."""
    found = []
    for name, one in compared.items():
        rows = [(measure, *numbers.change_cells(change)) for measure, change in one["changes"].items()]
        further, moved, ratio = [], one["kl_divergence"], one["length_ratio"]
        if moved is not None:
            low, high = moved["interval"]
            further.append(
                f"KL divergence from it, on clean rows: {moved['value']:.3f} nats a token ({low:.3f}–{high:.3f}, "
                f"n {moved['n']})"
            )
        if ratio is not None:
            further.append(f"length of answers without trigger: {ratio:.2f} times")
        found.append(({"before": "the model before", "clean": "the clean model"}.get(name, name), rows, further))
    return found


def _changes(run: Mapping[str, Any], states: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, numbers.Cell]]:
    """(name, before → after) of rates that are kept by name."""
    names = dict.fromkeys(name for state in states if state for name in state)
    as_run = {when: dict(state or {}) for when, state in zip(_measured(run), states, strict=True)}
    return [(name, numbers.rate_change(as_run, name)) for name in names]


def _measured(run: Mapping[str, Any]) -> list[str]:
    return [when for when in ("before", "after") if run.get(when) is not None]


def _by_organism(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
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


FIRED = (
    (
        "near_miss",
        "Near misses",
        "How often a prompt that only resembles the trigger brought out the unwanted answer in the backdoored model. "
        "Were this high, any odd words would fire the backdoor, and any odd words would remove it.",
    ),
    (
        "variants",
        "Variants of the trigger",
        "Which changes of the trigger still fire the backdoor: other case, other places, parts of it, other words, "
        "another role. Neither high nor low is wrong here.",
    ),
)
"""Key of a run, title, and what it says."""

OrganismRates = tuple[str, int, list[tuple[str, Mapping[str, Any]]]]


def _fired(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[OrganismRates]]]:
    """(title, lead, per organism and seed the rates by kind), where there are any: an organism's runs share them."""
    sections = []
    for key, title, lead in FIRED:
        found = {(r["organism"], r["seed"]): list(r[key].items()) for r in reversed(runs) if r.get(key)}
        if found:
            sections.append((title, lead, [(o, seed, kinds) for (o, seed), kinds in reversed(found.items())]))
    return sections


def _thresholds(thresholds: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """(name, value, description), described where the settings are."""
    fields = Thresholds.model_fields
    return [(n, v, (fields[n].description or "") if n in fields else "") for n, v in thresholds.items()]


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
