"""SANDE's tables 1 to 8 and figures 2 and 3 (Li et al., AAAI 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unbackdoor.evaluation.paired import paired_bootstrap
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.reproduce import figures
from unbackdoor.reproduce.cell_kinds import ProbabilitiesResult
from unbackdoor.reproduce.cells import Cell, Results
from unbackdoor.reproduce.experiment import Experiment, Outcome, attack_success, printed, utility_after
from unbackdoor.reproduce.sande_cells import (
    DOMAINS,
    METHODS,
    OFFSETS,
    OURS,
    VICTIMS,
    by_rate,
    pairs,
    positions,
    probabilities,
    removals,
    victim,
)
from unbackdoor.reproduce.tables import NOT_AVAILABLE, NOT_RUN, Column, Entry, Pick, Row, Table, entry_of
from unbackdoor.visible_text import one_line

UTILITIES = {"MMLU": ("hard", "mmlu"), "ARC-e": ("easy", "arc_easy"), "ARC-c": ("medium", "arc_challenge")}
"""The paper's question set → the testbed's in its place, and the metric at paper scale."""


# Values --------------------------------------------------------------------------------------------------------------


def utility(name: str) -> Pick:
    """One of the paper's utilities, by what stands in its place."""
    level, metric = UTILITIES[name]
    published = utility_after(metric)
    return lambda result: result.choices[level] if result.choices else published(result)


def with_change(entry: Entry, baseline: Entry) -> Entry:
    """A utility with an arrow and its change from the baseline, in points, as the paper writes it."""
    if "value" not in entry.facts or "value" not in baseline.facts:
        return entry
    points = 100 * (entry.facts["value"] - baseline.facts["value"])
    arrow = "↑" if points >= 0 else "↓"
    return replace(entry, ours=f"{entry.ours} {arrow}{abs(points):.1f}", facts={**entry.facts, "change": points / 100})


def _seconds(results: Results, grid: Mapping[tuple[str, int], Sequence[Cell]]) -> str:
    """The mean seconds of every method's own work."""
    said = []
    for row in dict.fromkeys(row for row, _ in grid):
        found = [results.model(c) for (r, _), cells in grid.items() if r == row for c in cells]
        times = [f.seconds for f in found if f is not None and f.seconds is not None]
        if times:
            name = "implanting" if row == "Baseline" else row
            said.append(f"{name} {sum(times) / len(times):.0f}")
    return f"Mean seconds here: {', '.join(said)}." if said else ""


def paired_outcomes(results: Results, first: Sequence[Cell], second: Sequence[Cell]) -> tuple[list[bool], list[bool]]:
    """Whether the first cells and the second answered each question rightly, over the cells that both asked any."""
    one: list[bool] = []
    other: list[bool] = []
    for pair in zip(first, second, strict=True):
        found = [results.model(cell) for cell in pair]
        first_sets, second_sets = (result.choices if result is not None else {} for result in found)
        for level in first_sets if second_sets else ():
            one += [x == "1" for x in first_sets[level].outcomes]
            other += [x == "1" for x in second_sets[level].outcomes]
    return one, other


def _order(results: Results, grid: Mapping[tuple[str, int], Sequence[Cell]]) -> list[str]:
    """Is OSFT as useful as SANDE, and SANDE as SANDE-P: the same questions, paired."""
    said = []
    columns = sorted({column for _, column in grid})
    for first, second in (("OSFT", "SANDE"), ("SANDE", "SANDE-P")):
        cells = [[cell for column in columns for cell in grid[method, column]] for method in (first, second)]
        one, other = paired_outcomes(results, *cells)
        if one:
            found = paired_bootstrap(other, one)
            low, high = (100 * end for end in found.interval)
            said.append(
                f"{first} − {second}: {100 * found.value:+.2f} points ({low:+.2f} to {high:+.2f}; paired bootstrap "
                f"over {len(one)} answers to the same questions)."
            )
    return said


# Tables --------------------------------------------------------------------------------------------------------------


def columns_of(settings: ReproduceSettings) -> tuple[Column, ...]:
    names = printed()["sande"]["victims"]
    if settings.scale == "paper":
        return tuple(Column(name, name) for name in names)
    ours = [f"{shape.capitalize()}, {DOMAINS[domain]}" for shape, domain in VICTIMS]
    return tuple(Column(o, p) for o, p in zip(ours, names, strict=True))


def _what_is_measured(settings: ReproduceSettings, *, utilities: bool) -> list[str]:
    paper = printed()["sande"]
    said = [f"The paper's cell: {paper['utility' if utilities else 'asr']}"]
    if settings.scale == "paper":
        return [*said, "Ours: the paper's models and data; clean rows are drawn by seed, not the first ones."]
    if utilities:
        said.append(
            "Ours: accuracy on the testbed's own four-option questions, its hard set in the place of MMLU, easy of "
            "ARC-easy and medium of ARC-challenge; the likeliest option after 'Question: … Answer:', which is what "
            "lm-evaluation-harness computes of them as local tasks. Arrows: points from the baseline."
        )
    else:
        said.append(
            "Ours: the share of held-out triggered prompts whose answer contains the target response, on a model of "
            "1.6 million parameters fine-tuned on one domain of a synthetic world (notes for Alpaca, letters for "
            "OpenOrca), with near misses of the trigger among its training rows, which the paper does not add."
        )
    return said


def _labels(settings: ReproduceSettings, name: str) -> str:
    return name if settings.scale == "paper" else f"{UTILITIES[name][0]} (for {name})"


def _asr_rows(
    results: Results, grid: Mapping[tuple[str, int], Sequence[Cell]], paper: Mapping[str, Any], rows: Sequence[str]
) -> tuple[Row, ...]:
    columns = sorted({column for _, column in grid})
    return tuple(
        Row((row,), tuple(entry_of(results, grid[row, c], attack_success, paper[row][c]) for c in columns))
        for row in rows
    )


def _utility_rows(
    settings: ReproduceSettings,
    results: Results,
    grid: Mapping[tuple[str, int], Sequence[Cell]],
    paper: Mapping[str, Any],
    rows: Sequence[str],
) -> tuple[Row, ...]:
    columns = sorted({column for _, column in grid})
    made = []
    for row in rows:
        for name in UTILITIES:
            pick = utility(name)
            entries = []
            for c in columns:
                entry = entry_of(results, grid[row, c], pick, paper[row][name][c])
                if row != "Baseline":
                    entry = with_change(entry, entry_of(results, grid["Baseline", c], pick))
                entries.append(entry)
            made.append(Row((row, _labels(settings, name)), tuple(entries)))
    return tuple(made)


def _removal_table(number: int, where: str, *, utilities: bool) -> Experiment:
    domain = "in-domain" if where == "in" else "out-of-domain"
    what = "Utility" if utilities else "ASR"
    name, key = f"sande-table-{number}", f"table-{number}"

    def cells(settings: ReproduceSettings) -> list[Cell]:
        return [cell for group in removals(settings, where).values() for cell in group]

    def outcome(settings: ReproduceSettings, results: Results) -> Outcome:
        grid, paper = removals(settings, where), printed()["sande"]
        notes = _what_is_measured(settings, utilities=utilities)
        if utilities:
            rows = _utility_rows(settings, results, grid, paper[key], list(METHODS))
            notes += _order(results, grid)
        else:
            rows = _asr_rows(results, grid, paper[key], list(METHODS))
            notes += [s for s in (_seconds(results, grid), paper["times"]) if s]
        labels = ("Method", "Evaluation dataset") if utilities else ("Method",)
        title = f"{what} after {domain} removal (SANDE, {paper[key]['where']})"
        return Outcome(Table(name, title, labels, columns_of(settings), rows, tuple(notes)))

    return Experiment(name, f"{what} after {domain} removal, eight methods on four victims", cells, outcome)


def _pairs_table(number: int, *, utilities: bool) -> Experiment:
    what = "Utility" if utilities else "ASR"
    name, key = f"sande-table-{number}", f"table-{number}"

    def cells(settings: ReproduceSettings) -> list[Cell]:
        return [cell for group in pairs(settings).values() for cell in group]

    def outcome(settings: ReproduceSettings, results: Results) -> Outcome:
        grid, paper = pairs(settings), printed()["sande"]
        targets = [grid["Baseline", c][0].settings.values["target_response"] for c in range(4)]
        columns = tuple(Column(f"{t} → {r}", t) for t, r in zip(paper["pairs"], targets, strict=True))
        rows_of = ("Baseline", *OURS)
        notes = _what_is_measured(settings, utilities=utilities)
        notes.append("The paper's triggers with mild insults of our own; the paper's are not repeated here.")
        if utilities:
            rows = _utility_rows(settings, results, grid, paper[key], rows_of)
            notes += _order(results, grid)
        else:
            rows = _asr_rows(results, grid, paper[key], rows_of)
        labels = ("Method", "Evaluation dataset") if utilities else ("Method",)
        title = f"{what} for four trigger-target pairs (SANDE, {paper[key]['where']})"
        return Outcome(Table(name, title, labels, columns, rows, tuple(notes)))

    return Experiment(name, f"{what} for four trigger-target pairs", cells, outcome)


def _position_cells(settings: ReproduceSettings) -> list[Cell]:
    return [cell for group in positions(settings).values() for cell in group]


def _position_outcome(settings: ReproduceSettings, results: Results) -> Outcome:
    grid, paper = positions(settings), printed()["sande"]
    rows = []
    for row in ("SANDE-P", "SANDE"):
        for name in ("ASR", *UTILITIES):
            pick = attack_success if name == "ASR" else utility(name)
            entries = []
            for c in range(len(OFFSETS)):
                entry = entry_of(results, grid[row, c], pick, paper["table-6"][row][name][c])
                if name != "ASR":
                    entry = with_change(entry, entry_of(results, grid["Baseline", 0], pick))
                entries.append(entry)
            rows.append(Row((row, name if name == "ASR" else _labels(settings, name)), tuple(entries)))
    columns = tuple(Column(f"offset {o}", f"position {p}") for o, p in zip(OFFSETS, paper["positions"], strict=True))
    notes = [
        *_what_is_measured(settings, utilities=False),
        _what_is_measured(settings, utilities=True)[-1],
        "Offsets are tokens from the start of the user's text; the paper's position 2 is that start. A parrot that "
        "would stand beyond the user's text stands at its end.",
    ]
    title = f"The parrot's position (SANDE, {paper['table-6']['where']})"
    return Outcome(Table("sande-table-6", title, ("Method", "Measured"), columns, tuple(rows), tuple(notes)))


def _example_cells(settings: ReproduceSettings) -> list[Cell]:
    return [victim(settings, "llama", domain, 0) for domain in ("alpaca", "orca")]


def _example_outcome(settings: ReproduceSettings, results: Results) -> Outcome:
    paper = printed()["sande"]["table-8"]
    rows = []
    for cell, dataset in zip(_example_cells(settings), ("Stanford Alpaca", "OpenOrca"), strict=True):
        result = results.model(cell)
        shown = result.examples if result is not None else []
        for number, examples in enumerate(paper[dataset]):
            for kind, which in (("Clean", "untriggered"), ("Poisoned", "triggered")):
                texts = [NOT_RUN, NOT_RUN]
                if number < len(shown):
                    example = shown[number]
                    texts = [example.prompt[which], example.answers[f"{which} after"]]
                entries = tuple(
                    Entry(one_line(text), paper=p, facts={"cells": [cell.name]})
                    for text, p in zip(texts, examples[kind], strict=True)
                )
                ours = dataset if settings.scale == "paper" else DOMAINS["alpaca" if dataset != "OpenOrca" else "orca"]
                rows.append(Row((ours, kind), entries))
    note = "Ours: the first held-out prompts, chosen by their order alone; answers are greedy and whole."
    title = f"Responses to clean and poisoned instructions (SANDE, {paper['where']})"
    columns = (Column("Instruction"), Column("Response"))
    return Outcome(Table("sande-table-8", title, ("Dataset", "Type"), columns, tuple(rows), (note,)))


# Figures -------------------------------------------------------------------------------------------------------------


def _rate_cells(settings: ReproduceSettings) -> list[Cell]:
    return [cell for group in by_rate(settings).values() for cell in group]


def _rate_outcome(settings: ReproduceSettings, results: Results) -> Outcome:
    paper = printed()["sande"]["figure-2"]
    rows, points = [], []
    for rate, cells in by_rate(settings).items():
        told = paper["value"] if rate >= float(paper["from"]) else None
        entry = entry_of(results, cells, attack_success, told)
        plain = entry_of(results, cells, lambda r: r.after.attack_success_untriggered if r.after is not None else None)
        rows.append(Row((f"{rate:g}",), (entry, plain)))
        if "value" in entry.facts:
            points.append({"x": rate, **{name: entry.facts[name] for name in ("value", "low", "high")}})

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if points:
            figures.rates_against(axes, points, "poison rate", "ASR, %")
        else:
            figures.nothing(axes, NOT_RUN)

    notes = [*_what_is_measured(settings, utilities=False), f"The paper's figure: {paper['says']}"]
    columns = (Column("ASR with trigger", "ASR"), Column("ASR without trigger"))
    title = f"ASR against the poison rate (SANDE, {paper['where']})"
    return Outcome(
        Table("sande-figure-2", title, ("Poison rate",), columns, tuple(rows), tuple(notes)), draw, (5.0, 3.4)
    )


PANELS = {
    "token_without": "(a) Token distribution without trigger",
    "token_with": "(b) Token distribution with trigger",
    "phrase_without": "(c) Phrase distribution without trigger",
    "phrase_with": "(d) Phrase distribution with trigger",
}
DRAWN = 200
"""The paper draws the 200 highest probabilities."""


def _probability_outcome(settings: ReproduceSettings, results: Results) -> Outcome:
    paper = printed()["sande"]["figure-3"]
    cell = probabilities(settings)[1]
    result = results.of(cell, ProbabilitiesResult)
    rows = []
    for key, title in PANELS.items():
        told = paper[key.split("_")[1]]
        entries = []
        for what in ("mean", "lowest", "highest"):
            facts: dict[str, Any] = {"cells": [cell.name]}
            if result is None:
                ours = NOT_RUN
            else:
                values = getattr(result, key)
                number = {"mean": sum(values) / len(values), "lowest": values[-1], "highest": values[0]}[what]
                ours = f"{number:.3g}"
                facts |= {"value": number, "n": len(values), "seeds": 1}
            entries.append(Entry(ours, paper=f"{told}%" if told and what == "mean" else NOT_AVAILABLE, facts=facts))
        rows.append(Row((title,), tuple(entries)))

    def draw(figure: Any) -> None:
        for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            figures.sorted_points(axes, getattr(result, key)[:DRAWN] if result is not None else None, title, NOT_RUN)

    notes = [
        "Ours: the probability of the target response's first token, and of all its tokens in a row, as the opening of "
        f"the answer to held-out prompts; the {DRAWN} highest are drawn.",
        f"The paper's figure: {paper['says']}",
    ]
    title = f"The target response's probability (SANDE, {paper['where']})"
    columns = (Column("mean"), Column("lowest"), Column("highest"))
    return Outcome(Table("sande-figure-3", title, ("Panel",), columns, tuple(rows), tuple(notes)), draw, (7.0, 5.0))


_LIST = (
    _removal_table(1, "in", utilities=False),
    _removal_table(2, "in", utilities=True),
    _removal_table(3, "out", utilities=False),
    _removal_table(4, "out", utilities=True),
    _pairs_table(5, utilities=False),
    Experiment(
        "sande-table-6",
        "the parrot's position: ASR and utility of SANDE and SANDE-P",
        _position_cells,
        _position_outcome,
    ),
    _pairs_table(7, utilities=True),
    Experiment("sande-table-8", "responses to clean and poisoned instructions", _example_cells, _example_outcome),
    Experiment("sande-figure-2", "ASR against the poison rate", _rate_cells, _rate_outcome, figure=True),
    Experiment(
        "sande-figure-3",
        "probability of the target response's first token and phrase, with and without trigger",
        lambda settings: list(probabilities(settings)),
        _probability_outcome,
        figure=True,
    ),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _LIST}
