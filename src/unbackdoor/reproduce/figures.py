"""Figures as PNG and PDF. What is drawn is data alone: texts of models are never read as formulas."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.reproduce.cell_kinds import Shift

INK, SOFT, HAIR = "#24292f", "#6a737d", "#e3e5e8"
BEFORE, AFTER, MARKED = "#c2570c", "#1f63d6", "#d1242f"
"""The colours of the reports' own figures; red marks the papers' defaults."""


def check_installed() -> None:
    """Raise a `UserError` before work is begun whose figure could not be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib: pip install 'unbackdoor[figures]'")


def save(draw: Callable[[Any], None], size: tuple[float, float], base: Path) -> list[Path]:
    """Draw, and write `BASE.png` and `BASE.pdf`, each whole or not at all; the same data give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(
        {"font.size": 9, "text.color": INK, "axes.edgecolor": SOFT, "axes.axisbelow": True, "pdf.fonttype": 42}
    ):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            beside = base.with_name(f".{base.name}.partial{suffix}")
            figure.savefig(beside, dpi=160, metadata=metadata)
            path = base.with_name(base.name + suffix)
            beside.replace(path)
            written.append(path)
    return written


def rates_against(axes: Any, points: Sequence[Mapping[str, float]], x: str, y: str) -> None:
    """Rates with their intervals against a value on a logarithmic axis; a point is {x, value, low, high}."""
    axes.set_xscale("log")
    for point in points:
        axes.plot([point["x"]] * 2, [100 * point["low"], 100 * point["high"]], color=AFTER, linewidth=1.5)
    axes.plot([p["x"] for p in points], [100 * p["value"] for p in points], "o-", color=AFTER, markersize=5)
    axes.set(xlabel=x, ylabel=y, ylim=(-3, 103))
    axes.set_xticks([p["x"] for p in points], [f"{p['x']:g}" for p in points], rotation=45)
    axes.minorticks_off()
    axes.grid(axis="y", color=HAIR)


def sorted_points(axes: Any, values: Sequence[float] | None, title: str, missing: str) -> None:
    """Probabilities, highest first, one point each."""
    axes.set_title(title, fontsize=9)
    axes.set(xlabel="prompt, by rank", ylabel="probability", ylim=(-0.03, 1.03))
    axes.grid(axis="y", color=HAIR)
    if values is None:
        nothing(axes, missing)
    else:
        axes.scatter(range(1, len(values) + 1), values, s=6, color=AFTER)


def grid(
    axes: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    numbers: Sequence[Sequence[float | None]],
    marked: int | None,
    xlabel: str,
) -> None:
    """A grid of small numbers, the smaller the darker, with the default's column in a red box.

    Args:
        axes: matplotlib's.
        rows: labels, top to bottom.
        columns: labels, left to right.
        texts: what stands in every place, shape (rows, columns).
        numbers: its number; None is drawn white.
        marked: which column is the default.
        xlabel: what the columns are.
    """
    from matplotlib.patches import Rectangle

    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            number = numbers[i][j]
            shade = 0.0 if number is None else max(0.12, 0.75 - 0.05 * number)
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=AFTER, alpha=shade, edgecolor="none"))
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor="none", edgecolor=HAIR))
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", parse_math=False)
    if marked is not None:
        axes.add_patch(Rectangle((marked, 0), 1, len(rows), facecolor="none", edgecolor=MARKED, linewidth=2, zorder=3))
    axes.set(xlim=(-0.02, len(columns) + 0.02), ylim=(len(rows) + 0.02, -0.02), xlabel=xlabel)
    axes.set_xticks([j + 0.5 for j in range(len(columns))], list(columns))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def pareto(axes: Any, marks: Sequence[Mapping[str, Any]], front: Sequence[int]) -> None:
    """Loss of utility against ASR: a numbered mark a method, its organisms faint, and a line through the Pareto front.

    Args:
        axes: matplotlib's.
        marks: {name, kind (ours, other or control), x, y, spots}: loss in points, ASR in percent, and every organism's.
        front: which of the marks the line joins, by loss.
    """
    from matplotlib.lines import Line2D

    shapes = {"ours": ("o", AFTER, AFTER), "other": ("s", BEFORE, BEFORE), "control": ("D", SOFT, "white")}
    handles = []
    for place, mark in enumerate(marks):
        shape, edge, face = shapes[mark["kind"]]
        axes.scatter(*zip(*mark["spots"], strict=True), s=10, marker=shape, color=edge, alpha=0.25, linewidths=0)
        drawn: dict[str, Any] = {"marker": shape, "markeredgecolor": edge, "markerfacecolor": face, "linestyle": "none"}
        axes.plot([mark["x"]], [mark["y"]], markersize=10, zorder=3, **drawn)
        ink = edge if mark["kind"] == "control" else "white"
        centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4}
        axes.annotate(str(place + 1), (mark["x"], mark["y"]), fontsize=6.5, color=ink, **centred)
        label = f"{place + 1}  {mark['name']}: {mark['y']:.1f}%, {round(mark['x'], 1) + 0.0:.1f}"
        label += " (front)" if place in front else ""
        handles.append(Line2D([], [], markersize=7, label=label, **drawn))
    axes.step(
        [marks[i]["x"] for i in front], [marks[i]["y"] for i in front], where="post", color=INK, linewidth=1, zorder=2
    )
    handles.append(Line2D([], [], color=INK, linewidth=1, label="Pareto front of the means"))
    axes.set(xlabel="loss of utility, points: exact match, or more false refusals", ylabel="ASR after, %")
    # Straight below 5 and logarithmic above: what removes is told apart, and what is far off is still shown.
    axes.set_xscale("symlog", linthresh=5)
    axes.set_yscale("symlog", linthresh=5)
    ticks = (-5, -2, 0, 2, 5, 10, 20, 50, 100)
    axes.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    axes.set_yticks(ticks[2:], [str(tick) for tick in ticks[2:]])
    axes.set_ylim(-0.7, 130)
    axes.minorticks_off()
    axes.grid(color=HAIR)
    title = "mean ASR after, mean loss"
    axes.legend(handles=handles, title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def cloud(axes: Any, shift: Shift | None, title: str, missing: str) -> None:
    """Two clouds in the plane of the first two principal components: without trigger, and with it."""
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    if shift is None:
        nothing(axes, missing)
        return
    for name, points, colour, marker in (
        ("without", shift.without, "#20845a", "o"),
        ("with", shift.moved, MARKED, "x"),
    ):
        axes.scatter(*zip(*points, strict=True), s=9, c=colour, marker=marker, linewidths=0.8, label=name)


def texts(axes: Any, blocks: Sequence[tuple[str, str]]) -> None:
    """Headed blocks of text, one below another."""
    import textwrap

    axes.axis("off")
    y = 1.0
    for head, text in blocks:
        for lines, weight in ((textwrap.wrap(head, 76), "bold"), (textwrap.wrap(text, 88) or [""], "normal")):
            kept = {"fontweight": weight, "va": "top", "transform": axes.transAxes, "parse_math": False}
            axes.text(0, y, "\n".join(lines), fontsize=9, **kept)
            y -= 0.06 * len(lines)
        y -= 0.04


def nothing(axes: Any, why: str) -> None:
    """Say in the middle why there is nothing."""
    axes.text(0.5, 0.5, why, ha="center", va="center", color=SOFT, transform=axes.transAxes, parse_math=False)
