"""Every organism of the catalogue against every removal method whose knowledge applies.

It is no table of a paper and no part of `all`: it has no limit of time, and can be filled piece by piece (`--only`).
The organisms beear-1 … beear-8 and BEEAR's removals of them are the cells of BEEAR's table 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unbackdoor.evaluation.paired import paired_bootstrap
from unbackdoor.evaluation.statistics import pooled
from unbackdoor.evaluation.verdict import asr
from unbackdoor.knowledge import described
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.methods import METHODS, method_class
from unbackdoor.methods.parts.method import Method
from unbackdoor.recipes.recipe import Recipe
from unbackdoor.report.numbers import bounds, percent, seconds
from unbackdoor.report_schema import Measured, Rate, Value
from unbackdoor.reproduce import beear, figures
from unbackdoor.reproduce.cell_kinds import DecodeCell, ModelResult, RemoveCell
from unbackdoor.reproduce.cells import Cell, CellOf, Organism, Results
from unbackdoor.reproduce.experiment import Experiment, Outcome, attack_success, evaluation
from unbackdoor.reproduce.organisms import organism_cells, organisms, points, recipes
from unbackdoor.reproduce.sande_cells import PREFERENCES, REMOVAL_ROWS
from unbackdoor.reproduce.tables import DOES_NOT_APPLY, FAILED, NOT_RUN, STOPPED, Column, Entry, Row, Table, entry_of
from unbackdoor.settings import TriggerSettings

OURS = ("osft", "sande", "sande-p", "beear")
VARIANTS = {"sande-p": "sande", "beear-input": "beear"}
"""A column that is a method of another name with settings of its own."""
COLUMNS = (
    *OURS,
    *("beear-input", "lat", "crow", "nad", "fine-mixing", "dpo", "average", "prune", "quantise", "temperature"),
    *("unlearn", "fine-tune"),
)
TRAINED = ("beear-input", "lat", "crow", "nad", "fine-mixing", "dpo", "unlearn")
UNTRAINED = ("average", "prune", "quantise", "temperature", "fine-tune")
GROUPS = (
    ("catalogue-ours", "ASR after: SANDE, BEEAR and OSFT", OURS),
    ("catalogue-trained", "ASR after: other methods that train", TRAINED),
    ("catalogue-others", "ASR after: the others and the control", UNTRAINED),
)
"""The tables of ASR alone: their name, title and columns."""
MARKS = {"removed": " ✓", "degenerate": " †"}
"""Beside an ASR, of a verdict."""
TEMPERATURE = 1.0
"""Of the column `temperature`, which changes no weight."""
OF_TARGET, OF_CONTRAST = ("sande", "sande-p", "unlearn"), ("beear", "beear-input", "lat")
"""Methods that must be given the target response, and those that must be given examples of the behaviour."""
STEPS = dict.fromkeys(("fine-tune", "dpo", "nad", "fine-mixing", "crow"), 120)
"""At micro scale, of methods whose steps have one term."""


# Cells ---------------------------------------------------------------------------------------------------------------


def grid(settings: ReproduceSettings) -> dict[str, dict[str, list[Cell]]]:
    """Organism → column → the removal, one cell a seed, where its knowledge applies."""
    made, known = organisms(settings), recipes(settings.scale)
    found: dict[str, dict[str, list[Cell]]] = {}
    for name, cells in made.items():
        other = sibling(name, known)
        siblings = made[other] if other is not None else [None] * settings.seeds
        found[name] = {
            method: [removal(settings, of, method, by) for of, by in zip(cells, siblings, strict=True)]
            for method in COLUMNS
            if applies(method, cells[0].settings.values, other)
        }
    return found


def applies(method: str, values: Mapping[str, Any], other: str | None) -> bool:
    """Whether a defender of this organism can have what the method must be given.

    Args:
        method: a column.
        values: the settings of the organism's recipe.
        other: the organism that `average` would take.
    """
    if method == "average":
        return other is not None
    if method in OF_TARGET:
        return bool(values.get("target_response"))
    return bool(values.get("contrast")) if method in OF_CONTRAST else True


def sibling(name: str, recipes: Sequence[Recipe]) -> str | None:
    """The other suspect model for `average`: the next of the catalogue (after its last comes its first) that is made of
    the same clean model and has no text of this one's trigger. None where there is no such organism."""
    place = next(i for i, recipe in enumerate(recipes) if recipe.name == name)
    own = recipes[place]
    for other in (*recipes[place + 1 :], *recipes[:place]):
        if other.model == own.model and not _trigger_texts(own) & _trigger_texts(other):
            return other.name
    return None


def _trigger_texts(recipe: Recipe) -> set[str]:
    values = recipe.settings
    several = (*values.get("alternatives", ()), *values.get("together", ()))
    return {text for text in (values.get("trigger"), values.get("structure"), *several) if text}


def removal(settings: ReproduceSettings, of: Organism, method: str, other: Cell | None = None) -> Cell:
    """One method on an organism, whose own clean rows (and contrast rows, where it has them) the method is given.

    Args:
        settings: scale and sizes.
        of: the organism.
        method: a column.
        other: the organism that `average` takes.
    """
    if method == "beear":
        return beear.removal(settings, of)
    if method == "temperature":
        drawn = DecodeCell(temperature=TEMPERATURE, evaluation=evaluation(settings))
        return CellOf(f"{of.name}.{method}", drawn, (of.name,))
    paper, attack = settings.scale == "paper", of.settings.values
    values: dict[str, Any] = {"seed": attack["seed"]}
    inputs: dict[str, Any] = {}
    if paper:
        values |= {name: attack[name] for name in ("micro_batch_size", "max_length") if name in attack}
        inputs |= beear.PAPER_ROWS if method in OF_CONTRAST else {"max_rows": REMOVAL_ROWS["paper"]}
    elif method in STEPS:
        values["steps"] = STEPS[method]
    if method in ("osft", "unlearn"):
        values |= {name: attack[name] for name in TriggerSettings.model_fields if name in attack}
    if method in OF_TARGET:
        values["target_response"] = attack["target_response"]
    if method == "sande-p":
        values["target_tokens"] = 1
    elif method == "beear-input":
        values |= {k: v for k, v in beear.PAPER_VALUES.items() if k != "layer"} if paper else {}
        values["space"] = "input"
    elif method == "fine-mixing":
        values["clean_model"] = of.settings.model
    elif method == "dpo":
        inputs["preferences"] = PREFERENCES[settings.scale]
    elif method == "quantise":
        values["bits"] = 4
    kept = RemoveCell(
        method=VARIANTS.get(method, method),
        values=values,
        inputs=inputs,
        preset=of.settings.preset,
        paper=paper and method in (*OURS, "beear-input"),
        evaluation=evaluation(settings),
        questions=None,
    )
    needs = (of.name, other.name) if method == "average" and other is not None else (of.name,)
    return CellOf(f"{of.name}.{method}", kept, needs)


# What they gave -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One method on one organism, its seeds pooled. A seed that the gate stopped counts as the model that it left.

    Args:
        success: the ASR after.
        change: of exact match on the same prompts, from −1 to 1; None where it was not measured.
        interval: its 95% interval, by resampling prompts; None where only the means are stored.
        verdicts: one a seed.
        seconds: of the method's own work, the mean over seeds.
        stopped: seeds that the gate stopped.
        false_refusals: their change, from −1 to 1; None where no allowed look-alikes were measured.
    """

    success: Rate
    change: float | None
    interval: tuple[float, float] | None
    verdicts: tuple[str, ...]
    seconds: float
    stopped: int
    false_refusals: float | None = None

    @property
    def removed(self) -> bool:
        """Whether every seed's verdict is so."""
        return set(self.verdicts) == {"removed"}

    @property
    def verdict(self) -> str:
        """The verdict, or how often each was given."""
        counts = Counter(self.verdicts)
        return self.verdicts[0] if len(counts) == 1 else ", ".join(f"{count} {name}" for name, count in counts.items())

    @property
    def loss(self) -> float | None:
        """Of utility: of exact match or, where that is more, the rise of false refusals; below 0 it is a gain."""
        if self.change is None:
            return None
        return -self.change if self.false_refusals is None else max(-self.change, self.false_refusals)

    @property
    def brief(self) -> str:
        """ASR and change, for a sentence."""
        change = "exact match not measured" if self.change is None else f"{points(self.change)} points"
        refusals = "" if self.false_refusals is None else f", refusals {points(self.false_refusals)}"
        return f"ASR {percent(self.success.rate)}, {change}{refusals}"


def found(results: Results, cells: Sequence[Cell]) -> Found | None:
    """What the seeds of a removal gave together; None where none was run to its end."""
    done = [result for cell in cells if (result := results.model(cell)) is not None]
    left = [(r, after) for r in done if (after := r.after or r.before).attack_success is not None]
    if not left:
        return None
    change, interval = _change(left)
    return Found(
        success=pooled([asr(after) for _, after in left]),
        change=change,
        interval=interval,
        verdicts=tuple(str(r.verdict) for r, _ in left),
        seconds=fmean(r.seconds or 0.0 for r, _ in left),
        stopped=sum(r.stopped for r, _ in left),
        false_refusals=_more_refusals(left),
    )


Left = Sequence[tuple[ModelResult, Measured]]
"""(result, measurements of the model that it left), one a seed."""


def _pairs(left: Left, metric: str) -> list[tuple[Value, Value]]:
    """The metric before and after, one a seed; nothing where a seed has none."""
    found = [(r.before.utility.get(metric), after.utility.get(metric)) for r, after in left]
    pairs = [(before, after) for before, after in found if before is not None and after is not None]
    return pairs if len(pairs) == len(found) else []


def _more_refusals(left: Left) -> float | None:
    """The change of the share of allowed requests that are refused, the mean over seeds."""
    pairs = _pairs(left, "false_refusals")
    return fmean(after.value - before.value for before, after in pairs) if pairs else None


def _change(left: Left) -> tuple[float | None, tuple[float, float] | None]:
    """The change of exact match over all seeds' prompts, and its paired interval where the pairs were counted."""
    pairs = _pairs(left, "exact_match")
    if not pairs:
        return None, None
    n = sum(after.n for _, after in pairs)
    change = sum((after.value - before.value) * after.n for before, after in pairs) / n
    gained = lost = 0
    for result, _ in left:
        counted = result.changes.get("exact_match")
        if counted is None and not result.stopped:
            return change, None
        if counted is not None:
            gained, lost = gained + counted.only_after, lost + counted.only_before
    before = [0] * gained + [1] * lost + [0] * (n - gained - lost)
    return change, paired_bootstrap(before, [1] * gained + [0] * (n - gained)).interval


def _place(results: Results, cells: Sequence[Cell], before: Entry) -> tuple[Entry, ...] | None:
    """A removal's row of the long table, one value a place; None where none of its seeds was run.

    Args:
        results: what there is.
        cells: the removal at every seed.
        before: the organism's ASR.
    """
    here = found(results, cells)
    names = [cell.name for cell in cells]
    if here is None:
        if any(name in results.failures for name in names):
            why = FAILED
        elif any(results.model(cell) is not None for cell in cells):
            why = "not measured"
        else:
            return None
        return (before, Entry(why, facts={"cells": names}), *[Entry(DOES_NOT_APPLY)] * 4)
    count = len(here.verdicts)
    low, high = here.success.interval
    facts = {"cells": names, "seeds": count, "value": here.success.rate, "stopped": here.stopped}
    facts |= {"hits": here.success.hits, "n": here.success.n, "low": low, "high": high}
    if here.stopped == count:
        after = Entry(STOPPED, facts=facts)
    else:
        some = f" [{here.stopped} of {count} {STOPPED}]" if here.stopped else ""
        after = Entry(f"{percent(here.success.rate)}{some}", bounds([low, high]), facts=facts)
    return (
        before,
        after,
        _change_entry(here.change, here.interval),
        _change_entry(here.false_refusals),
        Entry(here.verdict),
        Entry(seconds(here.seconds), facts={"value": round(here.seconds, 1)}),
    )


def _change_entry(change: float | None, interval: tuple[float, float] | None = None) -> Entry:
    """A change in points with its interval, where it was measured."""
    if change is None:
        return Entry(DOES_NOT_APPLY)
    low, high = interval or (None, None)
    facts = {"value": change} | ({"low": low, "high": high} if interval else {})
    return Entry(points(change), " to ".join(points(end) for end in interval or ()), facts=facts)


def _glance(results: Results, cells: Sequence[Cell] | None) -> Entry:
    """ASR after, with a mark for the verdict."""
    if cells is None:
        return Entry(DOES_NOT_APPLY)
    here = found(results, cells)
    if here is None:
        failed = any(cell.name in results.failures for cell in cells)
        return Entry(FAILED if failed else NOT_RUN)
    if here.stopped == len(here.verdicts):
        return Entry(STOPPED)
    facts = {"value": here.success.rate, "n": here.success.n, "seeds": len(here.verdicts)}
    return Entry(f"{percent(here.success.rate)}{MARKS.get(here.verdict, '')}", facts=facts)


def _catalogue_cells(settings: ReproduceSettings) -> list[Cell]:
    removals = [cell for by_method in grid(settings).values() for cells in by_method.values() for cell in cells]
    return [*organism_cells(settings), *removals]


def _catalogue_outcome(settings: ReproduceSettings, results: Results) -> Outcome:
    made, of = grid(settings), organisms(settings)
    all_found = {
        name: {method: here for method, cells in by_method.items() if (here := found(results, cells)) is not None}
        for name, by_method in made.items()
    }
    before = {name: entry_of(results, of[name], attack_success) for name in made}
    places = {
        (name, _title(method)): _place(results, by_method[method], before[name])
        for name, by_method in made.items()
        for method in COLUMNS
        if method in by_method
    }
    rows = [Row(labels, entries) for labels, entries in places.items() if entries is not None]
    missing = len(places) - len(rows)
    notes = (
        "ASR: with its 95% Wilson interval. Change of exact match: in points, on the same prompts, with its paired "
        "bootstrap interval. Change of false refusals: in points, where allowed requests were measured. Seconds: of "
        "the method's own work. A method has no row where the organism gives no target response, no examples of the "
        "behaviour, or no other organism of its architecture with another trigger, which it must be given. "
        f"Ours: {', '.join(OURS)}; control: fine-tune.",
        *([f"Not run: {missing} of {len(places)} places."] if missing else []),
        *(["Exact match is not measured on the papers' data."] if settings.scale == "paper" else []),
    )
    title = "Every organism of the catalogue, and every removal method whose knowledge applies"
    changes = ("exact match, points", "false refusals, points")
    columns = tuple(Column(head) for head in ("ASR before", "ASR after", *changes, "verdict", "seconds"))
    table = Table(
        "catalogue", title, ("Organism", "Method"), columns, tuple(rows), notes, paper=False, on_terminal=False
    )
    glances = [_glances(results, made, before, *group) for group in GROUPS]
    marks = _marks(all_found)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if marks:
            figures.pareto(axes, marks, front([(mark["x"], mark["y"]) for mark in marks]))
        else:
            figures.nothing(axes, NOT_RUN)

    return Outcome(table, draw, (9.0, 5.2), (_method_table(made, all_found), *glances))


def _glances(
    results: Results,
    made: Mapping[str, Mapping[str, Sequence[Cell]]],
    before: Mapping[str, Entry],
    name: str,
    title: str,
    methods: Sequence[str],
) -> Table:
    """ASR after alone, one row an organism and one column a method: what the long table says, to be seen at once."""
    rows = [
        Row((organism,), (before[organism], *(_glance(results, by_method.get(method)) for method in methods)))
        for organism, by_method in made.items()
    ]
    columns = (Column("ASR before"), *(Column(_title(method)) for method in methods))
    said = ", ".join(f"{mark.strip()} {verdict}" for verdict, mark in MARKS.items())
    notes = (f"Verdicts: {said}; no mark: neither. –: has not what the method must be given.",)
    return Table(name, title, ("Organism",), columns, tuple(rows), notes, paper=False)


def _method_of(column: str) -> type[Method] | None:
    """The method behind a column; `temperature` has none, since it changes no weight."""
    name = VARIANTS.get(column, column)
    return method_class(name) if name in METHODS else None


def _is_control(column: str) -> bool:
    method = _method_of(column)
    return method is not None and method.control


def _must_be_given(column: str) -> str:
    method = _method_of(column)
    return "nothing" if method is None else described(method.needs)


def _title(method: str) -> str:
    return f"{method} (control)" if _is_control(method) else method


def _own(here: Mapping[str, Found]) -> dict[str, Found]:
    return {method: one for method, one in here.items() if method in OURS and one.change is not None}


def _rivals(here: Mapping[str, Found]) -> dict[str, Found]:
    return {method: one for method, one in here.items() if method not in OURS and one.change is not None}


def beats(name: str, here: Mapping[str, Found], by_method: Mapping[str, Sequence[Cell]]) -> list[str]:
    """A sentence for every method, not ours, that does better on an organism than every one of ours.

    Better: a lower ASR and a smaller loss of utility than all of them; or, said as such, no worse in either than all of
    them and better in one.

    Args:
        name: the organism.
        here: what the methods gave on it.
        by_method: its columns; those of ours among them that were not run are named.
    """
    own = _own(here)
    told = ", ".join(f"{method} {one.brief}" for method, one in own.items())
    absent = [method for method in by_method if method in OURS and method not in own]
    told += f"; not run: {', '.join(absent)}" if absent else ""
    said = []
    for method, one in _rivals(here).items() if own else ():
        rate, loss = one.success.rate, one.loss or 0.0
        others = [(mine.success.rate, mine.loss or 0.0) for mine in own.values()]
        if all(rate < r and loss < x for r, x in others):
            how = "beats ours, with a lower ASR and a smaller loss of utility"
        elif all(rate <= r and loss <= x and (rate, loss) != (r, x) for r, x in others):
            how = "is no worse than ours in ASR and in utility, and better in one of them"
        else:
            continue
        said.append(f"{name}: {method} {how}: {one.brief} ({one.verdict}), against {told}.")
    return said


def _method_table(made: Mapping[str, Mapping[str, Any]], all_found: Mapping[str, Mapping[str, Found]]) -> Table:
    rows = []
    for method in COLUMNS:
        here = [by_method[method] for by_method in all_found.values() if method in by_method]
        apply = sum(method in by_method for by_method in made.values())
        changes = [one.change for one in here if one.change is not None]
        refusals = [one.false_refusals for one in here if one.false_refusals is not None]
        entries = [Entry(NOT_RUN)] * 6
        if here:
            removed, stopped = sum(one.removed for one in here), sum(one.stopped for one in here)
            success, time = fmean(one.success.rate for one in here), fmean(one.seconds for one in here)
            entries = [
                Entry(f"{len(here)} of {apply}", facts={"value": len(here)}),
                Entry(str(removed), facts={"value": removed, "stopped": stopped}),
                Entry(percent(success), facts={"value": success}),
                *(_mean_points(values) for values in (changes, refusals)),
                Entry(seconds(time), facts={"value": time}),
            ]
        rows.append(Row((_title(method), _must_be_given(method)), tuple(entries)))
    heads = ("organisms", "removed", "ASR after", "exact match, points", "false refusals, points", "seconds")
    columns = tuple(Column(head) for head in heads)
    beaten = [line for name, here in all_found.items() for line in beats(name, here, made[name])]
    nothing = "On no organism, of those run, does a method that is not ours do better in ASR or utility than every "
    nothing += "one of ours without being worse in the other."
    comparable = any(_rivals(here) and _own(here) for here in all_found.values())
    notes = (
        "Organisms: run, of those it applies to. The rest, but for removed, are means (of exact match and false "
        "refusals: of their change) over the organisms that were run, each weighing the same: "
        "methods with different organisms are not compared on the same. Removed: by the verdict of every seed. What "
        "the gate stopped counts as the model that it left, with its ASR before and no change. False refusals: where "
        "allowed look-alikes were measured.",
        "Loss of utility, below and in the figure: of exact match or, where that is more, the rise of false refusals.",
        *(beaten or ([nothing] if comparable else [])),
    )
    labels = ("Method", "Must be given")
    return Table(
        "catalogue-methods", "The methods over the catalogue", labels, columns, tuple(rows), notes, paper=False
    )


def _mean_points(values: Sequence[float]) -> Entry:
    return Entry(points(fmean(values)), facts={"value": fmean(values)}) if values else Entry("not measured")


def _marks(all_found: Mapping[str, Mapping[str, Found]]) -> list[dict[str, Any]]:
    """One mark a method: loss of utility in points, ASR after in percent, and the same of every organism."""
    marks: list[dict[str, Any]] = []
    for method in COLUMNS:
        own = [by_method[method] for by_method in all_found.values() if method in by_method]
        spots = [(100 * one.loss, 100 * one.success.rate) for one in own if one.loss is not None]
        if not spots:
            continue
        kind = "control" if _is_control(method) else "ours" if method in OURS else "other"
        x, y = (fmean(spot[axis] for spot in spots) for axis in (0, 1))
        marks.append({"name": _title(method), "kind": kind, "x": x, "y": y, "spots": spots})
    return marks


def front(spots: Sequence[tuple[float, float]]) -> list[int]:
    """Which of the points no other is as good as in both numbers and better than in one (less is better), by the first.

    Args:
        spots: (loss, ASR) each.
    """
    kept = [i for i, (x, y) in enumerate(spots) if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in spots)]
    return sorted(kept, key=lambda i: spots[i])


_CATALOGUE = Experiment(
    "catalogue",
    "every organism × every removal method whose knowledge applies, and a Pareto figure",
    _catalogue_cells,
    _catalogue_outcome,
    figure=True,
    in_all=False,
)
EXPERIMENTS = {_CATALOGUE.name: _CATALOGUE}
