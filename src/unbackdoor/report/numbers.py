"""How numbers are written: rates with n and interval, before → after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from unbackdoor.report_schema import Change, Measured, Rate, Row, Value

NO_TRIGGER = "no trigger given"
NOT_MEASURED = "not measured"
ARROW = " → "

PLAIN_NUMBERS = ("perplexity",)
LOWER_IS_BETTER = ("perplexity", "false_refusal", "false_refusals", "degenerate")


class Cell(NamedTuple):
    """One cell of a table: the figures, and in small print their intervals and n (empty where there is none).

    `last` is the interval of the last of the figures alone, for where there is no room for all.
    """

    text: str
    interval: str = ""
    n: str = ""
    last: str = ""

    @property
    def small_print(self) -> str:
        return " · ".join(part for part in (self.interval, self.n) if part)


def percent(share: float) -> str:
    """A share as a percentage with one decimal. Only 0 itself is written 0%, and only 1 itself 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    for decimals in (1, 2):
        text = f"{100 * share:.{decimals}f}"
        if float(text) not in (0, 100):
            return f"{text}%"
    return "<0.01%" if share < 0.5 else ">99.99%"


def bounds(interval: Sequence[float] | None) -> str:
    """An interval of shares in percent, such as `98.1–100`."""
    if interval is None:
        return ""
    return "–".join(f"{100 * end:.1f}".removesuffix(".0") for end in interval)


def seconds(value: float | None) -> str:
    """Seconds for a table cell."""
    if value is None:
        return "–"
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def rate_cell(rate: Rate | None, missing: str = NOT_MEASURED) -> Cell:
    """One rate with its interval and n."""
    if rate is None:
        return Cell(missing)
    return Cell(percent(rate.rate), bounds(rate.interval), f"n {rate.n}")


def rate_change(run: Row, pick: Callable[[Measured], Rate | None], missing: str = NOT_MEASURED) -> Cell:
    """A rate before → after. A state that was not measured is left out; a missing rate is never a number."""
    rates = [pick(state) for state in run.states]
    if all(rate is None for rate in rates):
        return Cell(missing if rates else NOT_MEASURED)
    return _joined([rate_cell(rate, missing) for rate in rates])


def triggered_change(run: Row) -> Cell:
    """The ASR with the trigger before → after."""
    return rate_change(run, lambda state: state.attack_success, NO_TRIGGER)


def untriggered_change(run: Row) -> Cell:
    """The same without the trigger."""
    return rate_change(run, lambda state: state.attack_success_untriggered)


def change_cells(change: Change) -> tuple[Cell, str, str]:
    """A paired change: the difference in points with its interval, which answers changed, and the p-value."""
    low, high = change.interval
    # Where all pairs changed alike each resample is the sample: an interval of no width is no certainty.
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}" if low < high else "–"
    difference = Cell(f"{100 * change.difference:+.1f}", interval, f"n {change.n}")
    p_value, adjusted = (f"{p:.3f}" if p >= 0.001 else "<0.001" for p in (change.p_value, change.adjusted))
    return difference, f"{change.only_before} / {change.only_after}", f"{p_value} ({adjusted})"


def utility_metrics(run: Row) -> list[str]:
    """The names of the run's utilities, exact match first."""
    names = dict.fromkeys(name for state in run.states for name in state.utility)
    return sorted(names, key=lambda name: name != "exact_match")


def utility_change(run: Row, metric: str) -> Cell:
    """A utility before → after, with interval and n."""
    return _joined([_utility_cell(state.utility.get(metric), metric) for state in run.states])


def first_utility(run: Row) -> tuple[str, Cell]:
    """Exact match, or else the first utility: its name and its cell."""
    names = utility_metrics(run)
    return (names[0], utility_change(run, names[0])) if names else ("", Cell(NOT_MEASURED))


def words(name: str) -> str:
    """A metric's or setting's name as it is read."""
    return name.replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller number is the better one."""
    return metric.endswith(LOWER_IS_BETTER)


def _utility_cell(value: Value | None, metric: str) -> Cell:
    if value is None:
        return Cell("–")
    if metric.endswith(PLAIN_NUMBERS):
        ends = "–".join(f"{end:.2f}" for end in value.interval or ())
        return Cell(f"{value.value:.2f}", ends, f"n {value.n}")
    return Cell(percent(value.value), bounds(value.interval), f"n {value.n}")


def _joined(cells: list[Cell]) -> Cell:
    intervals = [cell.interval for cell in cells if cell.interval]
    counts = list(dict.fromkeys(cell.n for cell in cells if cell.n))
    last = cells[-1].interval if cells else ""
    return Cell(ARROW.join(cell.text for cell in cells), ARROW.join(intervals), ", ".join(counts), last)
