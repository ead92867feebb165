"""The papers' claims are tested on the cells' numbers: what holds, what does not, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from unbackdoor.evaluation.statistics import rate_of
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.reproduce import beear, claims, sande_cells
from unbackdoor.reproduce.cell_kinds import ModelResult, RemoveCell, Result
from unbackdoor.reproduce.cells import Cell, CellOf
from unbackdoor.reproduce.claims import Answer, Place

SETTINGS = ReproduceSettings(scale="micro")


class Found:
    """Results by the names of their cells."""

    def __init__(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        self.found = found
        self.failures: dict[str, str] = {}

    def of(self, cell: Cell, kind: type[Result]) -> Result | None:
        made = self.found.get(cell.name)
        return None if made is None else kind.model_validate(made)

    def model(self, cell: Cell) -> Result | None:
        return self.of(cell, ModelResult)


def asr(hits: int, n: int = 200) -> dict[str, Any]:
    """A removal's result."""
    return {"before": {}, "after": {"attack_success": rate_of(hits, n)}, "stopped": False}


def outcome(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Claim → what was measured, and whether it holds."""
    [experiment] = claims.EXPERIMENTS.values()
    table = experiment.outcome(SETTINGS, Found(found)).table  # type: ignore[arg-type]
    return {row.labels[1]: (row.entries[0].ours, row.entries[1].ours) for row in table.rows}


def places(*answers: Answer) -> list[Place]:
    return [Place(f"place {i}", f"{i}%", answer, i / 100) for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("yes", "yes"), "holds"),
        (("yes", "missing"), "holds, 1 not run"),
        (("yes", "no"), "in part (1 of 2)"),
        (("no", "no", "missing"), "does not hold, 1 not run"),
        (("undecided", "yes"), "not decided (1 of 2 shown)"),
        (("undecided", "no"), "does not hold"),
        (("missing",), "not run"),
    ],
)
def test_a_claim_holds_where_it_holds_in_every_place(answers: tuple[Answer, ...], said: str) -> None:
    assert claims.verdict(places(*answers)) == said


def test_many_places_are_told_by_their_range_and_by_those_that_fail() -> None:
    assert claims.told(places("yes", "no")) == "place 0 0%; place 1 1%"
    assert claims.told(places("yes", "yes", "no", "yes", "yes")) == "0% to 4% in 5 places; not: place 2 2%"


def test_without_any_cell_nothing_is_claimed() -> None:
    assert {said for _, said in outcome({}).values()} == {"not run"}


def test_every_claim_rests_on_cells_that_all_runs() -> None:
    cells = {cell.name for cell in claims.EXPERIMENTS["claims"].cells(SETTINGS)}
    for claim in claims.CLAIMS:
        needed = {name for place in claim.places(SETTINGS, Found({})) for name in place.cells}  # type: ignore[arg-type]
        assert needed, claim.text
        assert needed <= cells, claim.text


def test_the_asr_after_a_method_is_held_against_the_bound() -> None:
    grid = sande_cells.removals(SETTINGS, "in")
    found = {cell.name: asr(0) for row in sande_cells.OURS for v in range(4) for cell in grid[row, v]}
    claim = "OSFT, SANDE and SANDE-P remove it in-domain (≤ 1%)"
    assert outcome(found)[claim] == ("0% in 12 places", "holds")
    found[grid["SANDE", 1][0].name] = asr(2)
    assert outcome(found)[claim][1] == "holds"  # 1.0% is at most 1%
    found[grid["SANDE", 1][0].name] = asr(3)
    assert outcome(found)[claim] == (
        "0% to 1.5% in 12 places; not: SANDE, Llama, letters 1.5%",
        "in part (11 of 12)",
    )


def test_what_the_gate_stopped_counts_as_not_removed() -> None:
    grid = sande_cells.removals(SETTINGS, "out")
    found = {grid["SANDE", 0][0].name: {"before": {}, "after": None, "stopped": True}}
    said = outcome(found)["OSFT, SANDE and SANDE-P remove it out-of-domain (≤ 1%)"]
    assert said == ("SANDE, Llama, notes stopped by the gate", "does not hold, 11 not run")


def choices(right: int, n: int = 300) -> dict[str, Any]:
    outcomes = "1" * right + "0" * (n - right)
    hard = {"value": right / n, "n": n, "outcomes": outcomes}
    return {"before": {}, "after": {}, "choices": {"hard": hard}}


@pytest.mark.parametrize(("first", "second", "answer"), [(200, 150, "yes"), (150, 200, "no"), (200, 200, "undecided")])
def test_an_order_of_utilities_is_decided_by_the_paired_interval(first: int, second: int, answer: str) -> None:
    one, other = (CellOf(name, RemoveCell(method="crow")) for name in ("one", "other"))
    found = Found({"one": choices(first), "other": choices(second)})
    [place] = claims.above(found, "one − other", [one], [other])  # type: ignore[arg-type]
    assert place.answer == answer
    assert place.value == pytest.approx((first - second) / 300)


def test_a_layer_takes_effect_first_and_a_length_of_one_last() -> None:
    layer, length = beear.DEFAULTS["micro"]
    reached = {}
    for attack in beear.GRID_ATTACKS["micro"]:
        of = beear.organism(SETTINGS, attack, 0)
        for value in beear.LAYERS["micro"]:
            reached[beear.rounds(SETTINGS, of, value, length).name] = {"curve": [], "round": 2 if value == layer else 5}
        reached[beear.rounds(SETTINGS, of, layer, 1).name] = {"curve": [], "round": None}
    said = outcome(reached)
    assert said["The layer of the main results takes effect in the fewest rounds"][1] == "holds"
    assert said["A perturbation of length 1 takes more rounds than one of 5"] == (
        "Model 2: rounds ×, 2; Model 7: rounds ×, 2",
        "holds",
    )
    attack = beear.organism(SETTINGS, "beear-2", 0)
    reached[beear.rounds(SETTINGS, attack, layer, length).name] = {"curve": [], "round": None}
    said = outcome(reached)
    assert said["The layer of the main results takes effect in the fewest rounds"][1] == "in part (1 of 2)"
    assert said["A perturbation of length 1 takes more rounds than one of 5"][1] == "not decided (1 of 2 shown)"
