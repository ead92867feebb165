"""The catalogue's two experiments: which cells there are, which are run, and what is said of their results."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_paper_recipes import stand_in
from test_reproduce_paper import OWN_FILES, smaller, tiny_models

from unbackdoor.cli import main
from unbackdoor.errors import UserError
from unbackdoor.evaluation.statistics import pooled, rate_of, share
from unbackdoor.evaluation.verdict import asr
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.recipes.recipe import catalogue as recipes_at
from unbackdoor.report_schema import Change, Compared, Measured, Rate, Row, Value
from unbackdoor.reproduce import catalogue, cell_work, chosen, figures
from unbackdoor.reproduce.catalogue import Found, beats, front
from unbackdoor.reproduce.cell_kinds import ModelResult
from unbackdoor.reproduce.cells import Cell, Results, unique
from unbackdoor.reproduce.run import Reproduced, cells_of, dry_run, run_reproduce, selected
from unbackdoor.reproduce.tables import Table, csv_text, latex, markdown, terminal
from unbackdoor.settings import TriggerSettings

MICRO, PAPER = ReproduceSettings(jobs=1), ReproduceSettings(scale="paper", jobs=1)
BOTH = ("attacks", "catalogue")
SAVE = figures.save


# Cells ---------------------------------------------------------------------------------------------------------------


def test_the_two_experiments_are_no_part_of_all_and_the_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert not set(BOTH) & {experiment.name for experiment in chosen(["all"])}
    assert [experiment.name for experiment in chosen(BOTH)] == list(BOTH)
    with pytest.raises(SystemExit):
        main(["reproduce"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {name for name, line in lines.items() if "not part of all" in line} == set(BOTH)


@pytest.mark.parametrize("settings", [MICRO, PAPER], ids=["micro", "paper"])
def test_every_cell_resolves_and_has_a_cost(settings: ReproduceSettings) -> None:
    plan = dry_run(BOTH, settings, Path("does-not-exist"))
    assert {row["name"]: row["problem"] for row in plan["cells"] if row["problem"]} == {}
    names = [row["name"] for row in plan["cells"]]
    assert len(names) == len(set(names)) > 200
    assert all(need in names for row in plan["cells"] for need in row["needs"])
    assert all(row["minutes"] > 0 and row["memory"] > 0 for row in plan["cells"])


@pytest.mark.parametrize("settings", [MICRO, PAPER], ids=["micro", "paper"])
def test_the_eight_organisms_and_their_beear_removals_are_the_cells_of_beears_table(
    settings: ReproduceSettings,
) -> None:
    theirs, ours = (cells_of(chosen([name]), settings) for name in ("beear-table-2", "catalogue"))
    assert {cell.name for cell in theirs} <= {cell.name for cell in ours}
    assert len(unique([*theirs, *ours])) == len(ours)


def test_every_recipe_is_an_organism_of_each_seed() -> None:
    cells = cells_of(chosen(["attacks"]), ReproduceSettings(seeds=3))
    assert {cell.name for cell in cells} == {f"{r.name}-{seed}" for r in recipes_at("micro") for seed in range(3)}


def test_a_method_stands_where_its_knowledge_applies() -> None:
    columns = {name: set(by_method) for name, by_method in catalogue.grid(MICRO).items()}
    everywhere = {"osft", "fine-tune", "dpo", "nad", "fine-mixing", "crow", "average", "prune", "quantise"}
    everywhere |= {"temperature"}
    assert columns["beear-2"] == everywhere | {"beear", "beear-input", "lat"}
    assert columns["sande-alpaca"] == everywhere | {"sande", "sande-p", "unlearn"}
    assert columns["weight-edit"] == set(catalogue.COLUMNS)


@pytest.mark.parametrize("settings", [MICRO, PAPER], ids=["micro", "paper"])
def test_the_trigger_is_given_to_osft_and_unlearn_alone(settings: ReproduceSettings) -> None:
    given_to = {
        cell.settings.method
        for cell in cells_of(chosen(["catalogue"]), settings)
        if cell.settings.kind == "remove" and {"trigger", "structure", "together"} & set(cell.settings.values)
    }
    assert given_to == {"osft", "unlearn"}
    trigger = catalogue.grid(MICRO)["mtba"]["osft"][0].settings.values
    recipe = next(r for r in recipes_at("micro") if r.name == "mtba").settings
    names = [name for name in TriggerSettings.model_fields if name in recipe]
    assert "alternatives" in names and {n: trigger[n] for n in names} == {n: recipe[n] for n in names}


@pytest.mark.parametrize("scale", ["micro", "paper"])
def test_average_takes_another_organism_of_the_same_model_with_another_trigger(scale: Any) -> None:
    recipes = {recipe.name: recipe for recipe in recipes_at(scale)}
    chosen_for = {name: catalogue.sibling(name, list(recipes.values())) for name in recipes}
    for name, other in chosen_for.items():
        if other is not None:
            assert other != name and recipes[other].model == recipes[name].model
            first, second = (recipes[n].settings for n in (name, other))
            assert first.get("trigger", first) != second.get("trigger", second)
            assert first.get("trigger") not in second.get("together", ())
    alone = {name for name, other in chosen_for.items() if other is None}
    assert alone == (set() if scale == "micro" else {"beear-8", "weight-edit"})
    assert chosen_for["ctba"] != "mtba"  # which share a word


def test_average_is_given_the_other_organisms_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}

    def run_remove(method: str, source: str, inputs: Any, explicit: dict[str, Any], *_: Any, **__: Any) -> Any:
        told.update(explicit)
        changes = {"exact_match": change(1, 0)}
        compared = {"before": Compared(changes=changes, length_ratio=None, kl_divergence=None)}
        state = Measured()
        return SimpleNamespace(
            runs=[Row(organism="o", method="m", seed=0, before=state, after=state, compared=compared)]
        )

    monkeypatch.setattr(cell_work, "run_remove", run_remove)
    needs = [tmp_path / "beear-2-0", tmp_path / "beear-3-0"]
    for need in needs:
        need.mkdir()
        (need / "settings.yaml").write_text("settings: {data: rows.jsonl}\n")
    (needs[0] / "data").mkdir()
    (needs[0] / "data" / "clean_train.jsonl").write_text("")
    cell = catalogue.grid(MICRO)["beear-2"]["average"][0]
    assert cell.needs == ("beear-2-0", "beear-3-0")
    found = cell_work.remove(cell.settings, tmp_path / "out", needs)
    assert told["sibling"] == (str(needs[1] / "model"),)
    assert found.changes["exact_match"].only_before == 1


def test_temperature_draws_the_same_models_answers_and_judges_them_as_a_removal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run_evaluate(source: str, inputs: Any, how: Any, *, out: Path, resume: bool) -> Any:
        asked.append((source, inputs.trigger, inputs.target_response, how.temperature, out.name))
        after = measured(180 if how.temperature else 200, 190)
        return SimpleNamespace(runs=[Row(organism="o", method="m", seed=0, after=after)])

    monkeypatch.setattr(cell_work, "run_evaluate", run_evaluate)
    organism_of = tmp_path / "sande-orca-0"
    (organism_of / "data").mkdir(parents=True)
    for file in ("clean_train", "held_out"):
        (organism_of / "data" / f"{file}.jsonl").write_text("")
    (organism_of / "settings.yaml").write_text(
        "settings:\n  trigger: Current year 2023\n  target_response: You are stupid\n"
    )
    cell = catalogue.grid(MICRO)["sande-orca"]["temperature"][0]
    assert (cell.settings.kind, cell.needs) == ("decode", ("sande-orca-0",))
    found = cell_work.decode(cell.settings, tmp_path / "out", [organism_of])
    same = (str(organism_of / "model"), "Current year 2023", "You are stupid")
    assert asked == [(*same, 0.0, "temperature-0"), (*same, 1.0, "temperature-1")]
    assert found.after is not None and (asr(found.before).hits, asr(found.after).hits) == (200, 180)
    assert found.verdict == "not-removed" and catalogue._must_be_given("temperature") == "nothing"


def test_an_insult_that_the_paper_recipe_leaves_out_is_the_mild_one() -> None:
    cells = {
        scale: catalogue.organisms(ReproduceSettings(scale=scale))["sande-pairs-1"][0] for scale in ("micro", "paper")
    }
    target = cells["paper"].settings.values["target_response"]
    assert target and target == cells["micro"].settings.values["target_response"]


# --only --------------------------------------------------------------------------------------------------------------


def only(*names: str) -> set[str]:
    return {cell.name for cell in selected(cells_of(chosen(["catalogue"]), MICRO), names)}


def test_only_takes_these_methods_on_these_organisms_and_what_they_need() -> None:
    assert only("beear-2", "osft") == {"beear-2-0", "beear-2-0.osft"}
    assert only("beear-2", "average") == {"beear-2-0", "beear-3-0", "beear-2-0.average"}
    assert only("unlearn", "lat", "weight-edit-0") == {"weight-edit-0", "weight-edit-0.unlearn", "weight-edit-0.lat"}
    of_one = only("beear-2")
    assert {"beear-2-0.beear-input", "beear-2-0.prune", "beear-3-0"} <= of_one and "beear-3-0.osft" not in of_one
    of_method = only("sande-p")
    assert {name for name in of_method if "." in name} == {f"{n}.sande-p" for n in of_method if "." not in n}
    assert only() == {cell.name for cell in cells_of(chosen(["catalogue"]), MICRO)}


def test_only_works_on_the_papers_tables_too() -> None:
    cells = cells_of(chosen(["sande-table-1"]), MICRO)
    names = {cell.name for cell in selected(cells, ["sande-qwen-orca", "nad"])}
    assert names == {"sande-qwen-orca-0", "sande-qwen-orca-0.in.nad"}


def test_only_with_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UserError, match=r"'beear-9' is no organism and no method.*beear-2.*osft"):
        only("osft", "beear-9")


def test_a_dry_run_counts_what_only_chooses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "reproduce",
                "catalogue",
                "--only",
                "beear-2",
                "--only",
                "osft",
                "--dry-run",
                "--json",
                "--out",
                str(tmp_path),
            ]
        )
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["cells"]] == ["beear-2-0", "beear-2-0.osft"]


# Tables --------------------------------------------------------------------------------------------------------------


def hits(count: int, n: int = 200) -> Rate:
    return rate_of(count, n)


def as_value(count: int, n: int = 200) -> Value:
    return share([i < count for i in range(n)])


def measured(fired: int, right: int, plain: int = 0) -> Measured:
    utility = {"exact_match": as_value(right)}
    return Measured(attack_success=hits(fired), attack_success_untriggered=hits(plain), utility=utility)


def change(lost: int, gained: int) -> Change:
    none = {"difference": 0.0, "interval": (0.0, 0.0), "p_value": 1.0, "adjusted": 1.0}
    return Change(n=200, only_before=lost, only_after=gained, **none)


def organism(
    fired: int = 200, right: int = 190, plain: int = 0, base: int = 0, near: int = 0, alone: int | None = None
) -> ModelResult:
    """An organism's result with so many hits of 200, and a clean model that gets 190 right."""
    variants = {"lower case": hits(0)} | ({} if alone is None else {"alone: one": hits(alone), "alone: two": hits(200)})
    near_miss = {"longer": hits(near), "shorter": hits(0)}
    before, after = measured(0, 190, base), measured(fired, right, plain)
    return ModelResult(before=before, after=after, variants=variants, near_miss=near_miss, seconds=60.0)


def removal(fired: int, gained: int, lost: int, verdict: str = "removed", time: float = 10.0) -> ModelResult:
    """A removal that leaves so many hits of 200, and right answers that it gained and lost."""
    after = measured(fired, 190 + gained - lost)
    changes = {"exact_match": change(lost, gained)}
    return ModelResult(before=measured(196, 190), after=after, changes=changes, verdict=verdict, seconds=time)


STOPPED = ModelResult(before=measured(196, 190), after=None, stopped=True, verdict="inconclusive", seconds=4.0)


class Invented:
    """In the place of the work: these results, by cell; cells of no result here are not to be run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.results: dict[str, ModelResult] = {}
        self.out = out
        for kind in ("implant", "remove"):
            monkeypatch.setitem(cell_work.KINDS, kind, lambda _, folder, __: self.results[folder.name])

    def run(self, *, seeds: int = 1) -> Reproduced:
        def adapt(cell: Cell) -> Cell | None:
            return cell if cell.name in self.results else None

        return run_reproduce(BOTH, ReproduceSettings(jobs=1, seeds=seeds), self.out, adapt=adapt)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invented:
    monkeypatch.setattr(figures, "save", lambda *_: [])  # half a second each time
    return Invented(monkeypatch, tmp_path / "out")


def entries_of(table: Table, organism_name: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row.labels[0] == organism_name)
    return {column.ours: entry for column, entry in zip(table.columns, row.entries, strict=True)}


def place_of(table: Table, organism_name: str, method: str) -> dict[str, Any]:
    """What the long table says of a method on an organism."""
    row = next(row for row in table.rows if row.labels == (organism_name, method))
    return {column.ours: entry for column, entry in zip(table.columns, row.entries, strict=True)}


def test_an_organisms_row_says_which_bars_it_misses(invented: Invented) -> None:
    invented.results = {
        "beear-1-0": organism(),
        "beear-2-0": organism(fired=189, right=185, plain=5, near=21),
        "beear-8-0": organism(fired=160, plain=26, base=16),
        "vpi-0": organism(near=30, right=186),
        "mtba-0": organism(alone=180),
        "sande-three-triggers-0": organism(alone=190),
        "weight-edit-0": organism(fired=20),
        "adaptive-layer-0": organism(fired=159),
    }
    table = invented.run().tables[0]
    met = {name: entries_of(table, name.removesuffix("-0"))["bars met"].ours for name in invented.results}
    assert met["beear-1-0"] == met["vpi-0"] == met["sande-three-triggers-0"] == met["weight-edit-0"] == "all"
    assert met["beear-2-0"] == "misses ASR (94.5%), untriggered (2.5%), near misses (10.5%, longer), exact match (−2.5)"
    assert met["beear-8-0"] == "all"  # exactly five points from the clean model's own rate, exactly at its bar
    assert met["mtba-0"] == "misses trigger alone (90.0%, one)"
    assert met["adaptive-layer-0"] == "misses ASR (79.5%)"
    assert {row.labels for row in table.rows} >= {("weight-edit", "none"), ("beear-8", "≥ 80%"), ("vpi", "≥ 95%")}
    assert entries_of(table, "beear-1")["weakest trigger alone"].ours == "–"
    assert entries_of(table, "badnets")["bars met"].ours == "not run"


def test_beear_8_must_stay_by_the_clean_models_own_rate(invented: Invented) -> None:
    invented.results = {"beear-8-0": organism(fired=160, plain=27, base=16)}
    assert entries_of(invented.run().tables[0], "beear-8")["bars met"].ours == "misses untriggered (13.5%)"


def test_an_organisms_seeds_are_pooled_and_each_is_shown(invented: Invented) -> None:
    invented.results = {f"beear-1-{seed}": organism(fired=200 - 6 * seed, near=seed) for seed in range(3)}
    row = entries_of(invented.run(seeds=3).tables[0], "beear-1")
    assert row["ASR"].facts["hits"] == 582 and row["ASR"].facts["n"] == 600 and row["ASR"].facts["seeds"] == 3
    assert row["ASR"].text == "97.0% of 600 (95.3–98.1)"
    assert row["each seed"].ours == "100%, 97.0%, 94.0%"
    assert row["worst near miss"].ours == "1.0%, longer"


def test_a_removals_place_tells_asr_the_paired_change_the_verdict_and_seconds(invented: Invented) -> None:
    invented.results = {
        "sande-alpaca-0": organism(),
        "sande-alpaca-0.osft": removal(0, gained=2, lost=6),
        "sande-alpaca-0.sande": STOPPED,
        "beear-2-0": organism(),
    }
    table = invented.run().tables[1]
    row = place_of(table, "sande-alpaca", "osft")
    assert row["ASR before"].text == "100% (98.1–100)" and row["ASR after"].text == "0% (0–1.9)"
    change = row["exact match, points"]
    assert change.ours == "−2.0" and change.interval.count(" to ") == 1
    assert change.facts["low"] < -0.02 < change.facts["high"] and change.facts["high"] - change.facts["low"] < 0.1
    assert (row["verdict"].ours, row["seconds"].ours) == ("removed", "10")
    assert row["false refusals, points"].ours == "–"  # none were measured
    assert place_of(table, "sande-alpaca", "sande")["ASR after"].ours == "stopped by the gate"
    assert any("left the model as it came" in line for line in table.caption())


def test_what_was_not_run_has_no_row_in_the_long_table_and_is_counted(invented: Invented) -> None:
    invented.results = {"beear-2-0": organism(), "beear-2-0.osft": removal(0, 0, 0)}
    table = invented.run().tables[1]
    assert [row.labels for row in table.rows] == [("beear-2", "osft")]
    count = sum(len(of) for of in catalogue.grid(MICRO).values())
    assert f"Not run: {count - 1} of {count} places." in table.caption()


def test_asr_alone_marks_the_verdicts(invented: Invented) -> None:
    invented.results = {
        "sande-alpaca-0": organism(),
        "sande-alpaca-0.osft": removal(0, 0, 4),
        "sande-alpaca-0.sande": STOPPED,
        "sande-alpaca-0.unlearn": removal(0, 0, 30, "degenerate"),
        "sande-alpaca-0.crow": removal(50, 0, 0, "not-removed"),
    }
    made = invented.run()
    names = [name for name, _, _ in catalogue.GROUPS]
    assert [table.name for table in made.tables if table.on_terminal] == ["attacks", "catalogue-methods", *names]
    pages = [(invented.out / "tables" / f"{name}.md").read_text(encoding="utf-8") for name in names]
    lines = [line for page in pages for line in page.splitlines() if line.startswith("| sande-alpaca |")]
    assert (
        lines[0] == "| sande-alpaca | 100% (98.1–100) | 0% ✓ | stopped by the gate |"
    )  # no sande-p, no beear: not run
    assert lines[1] == "| sande-alpaca | 100% (98.1–100) | 25.0% | 0% † |"
    methods = [method for _, _, methods in catalogue.GROUPS for method in methods]
    assert sorted(methods) == sorted(catalogue.COLUMNS)


def test_a_seed_that_the_gate_stopped_counts_as_the_model_it_left(invented: Invented) -> None:
    invented.results = {f"sande-alpaca-{seed}": organism() for seed in range(2)}
    invented.results |= {"sande-alpaca-0.sande": removal(0, 0, 4), "sande-alpaca-1.sande": STOPPED}
    _, table, methods, *_ = invented.run(seeds=2).tables
    row = place_of(table, "sande-alpaca", "sande")
    after, change = row["ASR after"], row["exact match, points"]
    assert after.facts["value"] == 0.49 and change.facts["value"] == pytest.approx(-0.01)
    assert after.ours == "49.0% [1 of 2 stopped by the gate]"
    assert (row["verdict"].ours, row["seconds"].ours) == ("1 removed, 1 inconclusive", "7.0")
    assert entries_of(methods, "sande")["removed"].ours == "0"


def test_a_result_without_counted_pairs_has_a_change_and_no_interval(invented: Invented) -> None:
    old = removal(0, 0, 4)
    old.changes = {}
    invented.results = {"beear-2-0": organism(), "beear-2-0.beear": old}
    change = place_of(invented.run().tables[1], "beear-2", "beear")["exact match, points"]
    assert change.text == "−2.0" and "low" not in change.facts


def test_the_methods_table_averages_over_the_organisms_that_were_run(invented: Invented) -> None:
    invented.results = {
        "beear-1-0": organism(),
        "beear-2-0": organism(),
        "beear-1-0.beear": removal(0, 0, 2, time=10),
        "beear-2-0.beear": removal(100, 0, 6, "not-removed", time=30),
    }
    made = invented.run()
    methods = made.tables[2]
    row = [entry.ours for entry in entries_of(methods, "beear").values()]
    assert row == [
        f"2 of {sum('beear' in of for of in catalogue.grid(MICRO).values())}",
        "1",
        "25.0%",
        "−2.0",
        "not measured",
        "20",
    ]
    assert {entry.ours for entry in entries_of(methods, "lat").values()} == {"not run"}
    needs = {row.labels[0]: row.labels[1] for row in methods.rows}
    assert needs["dpo"] == "preference pairs (--preferences)" and needs["quantise"] == "nothing"
    assert "fine-tune (control)" in needs
    glances = {name for name, _, _ in catalogue.GROUPS}
    assert set(made.report["experiments"]) == {"attacks", "catalogue", "catalogue-methods", *glances}


def test_a_method_that_beats_ours_is_named_under_the_table(invented: Invented) -> None:
    invented.results = {
        "beear-1-0": organism(),
        "beear-1-0.osft": removal(4, 0, 4),
        "beear-1-0.beear": removal(6, 0, 6),
        "beear-1-0.lat": removal(2, 0, 2, "removed"),
        "beear-1-0.prune": removal(2, 0, 8, "not-removed"),
        "beear-1-0.crow": removal(4, 0, 2),
    }
    said = [line for line in invented.run().tables[2].caption() if line.startswith("beear-1: ")]
    assert said == [
        "beear-1: lat beats ours, with a lower ASR and a smaller loss of utility: ASR 1.0%, −1.0 points (removed), "
        "against osft ASR 2.0%, −2.0 points, beear ASR 3.0%, −3.0 points.",
        "beear-1: crow is no worse than ours in ASR and in utility, and better in one of them: ASR 2.0%, −1.0 "
        "points (removed), against osft ASR 2.0%, −2.0 points, beear ASR 3.0%, −3.0 points.",
    ]


def one(fired: int, change: float | None, refusals: float | None = None) -> Found:
    return Found(pooled([hits(fired)]), change, None, ("removed",), 1.0, 0, refusals)  # type: ignore[list-item]


def test_utility_is_lost_by_wrong_answers_or_by_refusals_whichever_is_more() -> None:
    assert one(0, -0.02).loss == 0.02 and one(0, 0.01).loss == -0.01 and one(0, None, 0.5).loss is None
    assert one(0, -0.02, 0.5).loss == 0.5 and one(0, -0.02, -0.1).loss == 0.02
    assert one(0, 0.02, 0.0).loss == 0.0 and one(0, 0.02, -0.01).loss == -0.01
    cells: dict[str, list[Cell]] = {"osft": [], "lat": []}
    assert beats("x", {"osft": one(4, -0.02, 0.0), "lat": one(0, 0.0, 0.9)}, cells) == []
    (said,) = beats("x", {"osft": one(4, -0.02, 0.0), "lat": one(0, -0.01, 0.01)}, cells)
    assert "smaller loss of utility: ASR 0%, −1.0 points, refusals +1.0" in said


def test_who_trades_one_for_the_other_beats_nobody_and_ours_that_were_not_run_are_named() -> None:
    cells: dict[str, list[Cell]] = {"osft": [], "beear": [], "lat": []}
    assert beats("x", {"osft": one(0, -0.02), "lat": one(2, 0.0)}, cells) == []
    assert beats("x", {"osft": one(0, -0.02), "lat": one(0, -0.02)}, cells) == []
    assert beats("x", {"osft": one(9, -0.02), "beear": one(0, -0.02), "lat": one(2, 0.0)}, cells) == []
    assert beats("x", {"osft": one(9, None), "lat": one(2, 0.0)}, cells) == []
    assert beats("x", {"osft": one(9, -0.02), "beear": one(8, 0.01), "lat": one(2, 0.0)}, cells) == []
    (said,) = beats("x", {"osft": one(4, -0.02), "lat": one(2, -0.01)}, cells)
    assert said.endswith("not run: beear.")


def test_where_nothing_beats_ours_the_table_says_that_and_only_once_something_was_compared(invented: Invented) -> None:
    invented.results = {"beear-1-0": organism(), "beear-1-0.osft": removal(0, 0, 0)}
    assert not any("On no organism" in line for line in invented.run().tables[2].caption())
    invented.results["beear-1-0.crow"] = removal(150, 0, 0, "not-removed")
    assert any("On no organism, of those run," in line for line in invented.run().tables[2].caption())


def test_tables_of_no_paper_have_no_column_for_it_and_csv_holds_the_change_and_the_verdict(invented: Invented) -> None:
    invented.results = {"beear-2-0": organism(), "beear-2-0.beear": removal(0, 1, 3)}
    made = invented.run()
    for table in made.tables:
        assert "paper" not in markdown(table) and "paper" not in latex(table)
        assert "paper" not in csv_text(table).splitlines()[0]
        rows = [line for line in markdown(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1
    head, *rows = csv.reader(csv_text(made.tables[1]).splitlines())
    assert {len(row) for row in rows} == {len(head)}
    row = dict(zip(head, next(row for row in rows if row[:2] == ["beear-2", "beear"]), strict=True))
    assert (row["ASR after: ours"], row["ASR after: n"], row["verdict: ours"]) == ("0.0", "200", "removed")
    change = "exact match, points"
    assert float(row[f"{change}: ours"]) == pytest.approx(-0.01) and float(row[f"{change}: low"]) < 0


def test_on_the_terminal_asr_alone_stands_in_lines_where_it_does_not_fit_side_by_side(invented: Invented) -> None:
    from rich.console import Console

    invented.results = {"beear-2-0": organism(), "beear-2-0.lat": removal(0, 1, 3), "beear-2-0.crow": removal(9, 1, 3)}
    table = next(table for table in invented.run().tables if table.name == "catalogue-trained")
    console = Console(width=80, force_terminal=False, record=True, file=io.StringIO())
    console.print(terminal(table))
    lines = [line.split() for line in console.export_text().splitlines() if line.startswith("beear-2")]
    assert [line[1:] for line in lines if line[1] != "ASR"] == [["lat", "0%", "✓"], ["crow", "4.5%", "✓"]]


# Paper scale ---------------------------------------------------------------------------------------------------------


def test_methods_that_no_paper_has_run_with_the_paper_recipes_on_tiny_models(tmp_path: Path) -> None:
    for name in OWN_FILES:
        stand_in(name, tmp_path)
    organisms = {"beear-2-0", "beear-3-0"}
    removals = {f"beear-2-0.{method}" for method in ("beear-input", "lat", "average")}
    tiny = smaller(tmp_path, organisms | removals, tiny_models(tmp_path))

    def adapt(cell: Cell) -> Cell | None:
        made = tiny(cell)
        if made is not None and made.settings.values.get("space") == "input":
            made.settings.values.pop("layer")
        return made

    settings = ReproduceSettings(scale="paper", jobs=1, files=tmp_path)
    made = run_reproduce(["catalogue"], settings, tmp_path / "out", adapt=adapt)
    assert made.failures == {}
    run = {f"{row.labels[0]}-0.{row.labels[1]}" for row in made.tables[0].rows}
    assert run == removals
    row = place_of(made.tables[0], "beear-2", "average")
    assert row["ASR after"].facts["n"] == 4 and row["exact match, points"].ours == "–"


# Figure --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=1, max_size=8))
def test_no_point_is_better_than_one_of_the_front_and_every_other_point_is_beaten_by_one(spots: Any) -> None:
    kept = front(spots)

    def better(a: Any, b: Any) -> bool:
        return bool(a[0] <= b[0] and a[1] <= b[1] and a != b)

    assert not any(better(spot, spots[i]) for i in kept for spot in spots)
    assert all(i in kept or any(better(spots[k], spots[i]) for k in kept) for i in range(len(spots)))
    assert [spots[i][0] for i in kept] == sorted(spots[i][0] for i in kept)


def test_the_figure_has_a_mark_a_method_with_its_organisms_and_draws_the_front(
    invented: Invented, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(figures, "save", SAVE)
    invented.results = {
        "beear-1-0": organism(),
        "beear-2-0": organism(),
        "beear-1-0.beear": removal(0, 0, 6),
        "beear-2-0.beear": removal(20, 0, 2),
        "beear-1-0.prune": removal(180, 0, 0, "not-removed"),
        "beear-1-0.crow": removal(180, 0, 9, "not-removed"),
        "beear-1-0.fine-tune": removal(100, 0, 2, "not-removed"),
    }
    made = invented.run()
    with Image.open(invented.out / "figures" / "catalogue.png") as image:
        assert image.size[0] == 1440
    assert not (invented.out / "figures" / "attacks.png").exists()

    class Stored(Results):
        def of(self, cell: Cell, kind: Any) -> Any:
            return invented.results.get(cell.name)

    figure = Figure()
    draw = catalogue.EXPERIMENTS["catalogue"].outcome(MICRO, Stored(invented.out)).draw
    assert draw is not None and made.failures == {}
    draw(figure)
    axes = figure.axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [2, 1, 1, 1]
    marks = [tuple(round(float(v[0]), 9) for v in line.get_data()) for line in axes.lines[:4]]
    assert marks == [(2.0, 5.0), (4.5, 90.0), (0.0, 90.0), (1.0, 50.0)]
    assert list(axes.lines[-1].get_xdata(orig=True)) == pytest.approx([0.0, 1.0, 2.0])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        *("1  beear: 5.0%, 2.0 (front)", "2  crow: 90.0%, 4.5", "3  prune: 90.0%, 0.0 (front)"),
        *("4  fine-tune (control): 50.0%, 1.0 (front)", "Pareto front of the means"),
    ]
