"""The figures of a report as SVG: attack success with intervals, success of simulations, losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from unbackdoor.evaluation.statistics import wilson
from unbackdoor.report.charts import Series, line_chart
from unbackdoor.report.numbers import percent
from unbackdoor.report.svg import drawing, element, standalone
from unbackdoor.report_schema import Rate, Report, Row
from unbackdoor.visible_text import one_line

WIDTH, LEFT, AXIS = 330.0, 8.0, 262.0
"""The interval plots: their width, where 0% is, and how long the axis is."""


class Figure(NamedTuple):
    """A figure with the end of its file name."""

    name: str
    svg: Markup


class Mark(NamedTuple):
    """One row of an interval plot."""

    css: str
    share: float
    interval: Sequence[float] | None
    what: str


def attack_success_plot(run: Row) -> Markup | None:
    """ASR with the trigger, before and after, as dots with their 95% intervals; None where no trigger was given."""
    marks = [
        Mark(when, state.attack_success.rate, state.attack_success.interval, when)
        for when, state in (("before", run.before), ("after", run.after))
        if state is not None and state.attack_success is not None
    ]
    return _interval_plot("Attack success rate with the trigger", marks) if marks else None


def sweep_plot(report: Report) -> Markup | None:
    """ASR of the organisms of a sweep against the value that was varied, all seeds of a value together."""
    if report.sweep is None:
        return None
    by_value: dict[float, list[Rate]] = {}
    for (value, _), run in zip(report.sweep.points, report.runs, strict=True):
        if run.after is not None and run.after.attack_success is not None:
            by_value.setdefault(value, []).append(run.after.attack_success)
    counts = [(v, sum(r.hits for r in rates), sum(r.n for r in rates)) for v, rates in sorted(by_value.items())]
    marks = [Mark("after", hits / n, wilson(hits, n), f"{value:g}") for value, hits, n in counts]
    name = one_line(report.sweep.setting).replace("_", " ")
    return _interval_plot(f"Attack success rate against {name}", marks, labelled=True)


def simulation_plot(run: Row) -> Markup | None:
    """Success of a fresh simulation before and after, beside the control target's; None where nothing was simulated."""
    success = {(s.when, s.target): s.success for s in run.simulations}
    marks = [
        Mark(when, success[when, "target"], None, when) for when in ("before", "after") if (when, "target") in success
    ]
    if ("after", "control") in success:
        marks.append(Mark("other", success["after", "control"], None, "control target, after"))
    return _interval_plot("Success of a fresh simulation", marks) if marks else None


def success_chart(run: Row) -> Markup | None:
    """How the success of every simulation grew with its steps; those of the rounds between look alike."""
    curves: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    for simulation in run.simulations:
        css = simulation.when if simulation.when in ("before", "after") else "other"
        control = simulation.target == "control"
        when = "between" if css == "other" else css
        label = f"{'control target' if control else 'target'}, {when}"
        curve = [(float(step), success) for step, success in simulation.curve]
        if curve:
            curves.setdefault((label, f"{css} dashed" if control else css), []).append(curve)
    series = [Series(label, lines, css) for (label, css), lines in curves.items()]
    return line_chart("Success of simulations on held-out prompts", series, percentages=True) if series else None


def loss_charts(run: Row) -> list[Figure]:
    """One chart for simulate, one for eliminate, one for the control target; rounds follow each other on the axis."""
    groups: dict[str, list[tuple[str, Mapping[str, Sequence[float | None]]]]] = {}
    for phase, terms in run.losses.items():
        kind, part = _kind_and_part(phase)
        groups.setdefault(kind, []).append((part, terms))
    order = ["simulate", "eliminate"]
    return [
        Figure(f"loss-{_slug(kind)}", _loss_chart(kind, groups[kind]))
        for kind in sorted(groups, key=lambda kind: order.index(kind) if kind in order else len(order))
    ]


def run_figures(run: Row) -> list[Figure]:
    """Every figure of one run."""
    drawn = [
        ("attack-success", attack_success_plot(run)),
        ("simulation", simulation_plot(run)),
        ("simulation-curve", success_chart(run)),
    ]
    return [Figure(name, svg) for name, svg in drawn if svg is not None] + loss_charts(run)


def figure_files(report: Report) -> dict[str, str]:
    """File name to the text of an SVG file, for every figure of the report."""
    files = {}
    sweep = sweep_plot(report)
    if sweep is not None:
        files["sweep.svg"] = standalone(sweep)
    for number, run in enumerate(report.runs, start=1):
        for figure in run_figures(run):
            # Names come from outside: only letters, digits and hyphens of them reach a path.
            name = f"{number:02d}-{_slug(run.organism)}-{_slug(run.method)}-{figure.name}.svg"
            files[name] = standalone(figure.svg)
    return files


def save_figures(report: Report, directory: Path) -> list[Path]:
    """Write every figure as an SVG file into `directory` (a run's `figures/`), which is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in figure_files(report).items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _interval_plot(title: str, marks: Sequence[Mark], *, labelled: bool = False) -> Markup:
    """A row a mark on an axis from 0 to 100%, with the number at the right; before is hollow, after is full.

    `labelled` writes what each row is at the left.
    """
    row, top = 18.0, 12.0
    left = LEFT + (56.0 if labelled else 0.0)
    length = AXIS - (left - LEFT)
    base = top + row * (len(marks) - 1) + 12

    def x(share: float) -> float:
        return left + length * share

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=2, y2=base, class_="grid"))
    parts.append(element("line", x1=x(0), x2=x(1), y1=base, y2=base, class_="axis"))
    for tick, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(element("text", f"{tick:.0%}", x=x(tick), y=base + 13, text_anchor=anchor, font_size="10"))
    said = []
    for number, mark in enumerate(marks):
        y = top + row * number
        if labelled:
            parts.append(element("text", mark.what, x=0, y=y + 4))
        if mark.interval is not None:
            low, high = (min(1.0, max(0.0, end)) for end in mark.interval)
            parts.append(element("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=f"whisker {mark.css}"))
        shape = "hollow" if mark.css == "before" else "full"
        parts.append(element("circle", cx=x(mark.share), cy=y, r=4.5, class_=f"{shape} {mark.css}"))
        parts.append(element("text", percent(mark.share), x=WIDTH, y=y + 4, text_anchor="end", class_=mark.css))
        said.append(f"{mark.what} {percent(mark.share)}")
    return drawing(f"{title}: {', '.join(said)}", WIDTH, base + 18, *parts)


def _loss_chart(kind: str, parts: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]]) -> Markup:
    segments: dict[str, list[list[tuple[float, float]]]] = {}
    dividers, start = [], 0
    for part, terms in parts:
        dividers.append((float(start), part))
        for term, values in terms.items():
            line = [(float(start + step), float(v)) for step, v in enumerate(values, start=1) if v is not None]
            segments.setdefault(term, []).append(line)
        start += max((len(values) for values in terms.values()), default=0)
    series = [Series(term, lines, f"s{number % 5}") for number, (term, lines) in enumerate(segments.items())]
    return line_chart(f"Loss: {kind}", series, dividers=dividers if len(dividers) > 1 else ())


def _kind_and_part(phase: str) -> tuple[str, str]:
    """What a phase does and which part of the run it is: `round-2/simulate` is (`simulate`, `round 2`)."""
    part, _, step = phase.rpartition("/")
    part = part.replace("-", " ")
    if "control" in step:
        return "simulate, control target", part
    return (step if step else phase), part


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:40] or "unnamed"
