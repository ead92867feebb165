"""The papers' experiments: their cells, their tables, and what is run, shared, resumed and said."""

from __future__ import annotations

import csv
import io
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from unbackdoor.case import Case
from unbackdoor.cli import main
from unbackdoor.errors import UserError
from unbackdoor.evaluation.statistics import rate_of
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.parts.result import Simulation
from unbackdoor.methods.parts.rounds import Round, run_rounds
from unbackdoor.perturbation import Perturbation
from unbackdoor.report_schema import Measured, Rate
from unbackdoor.reproduce import EXPERIMENTS, beear, cell_work, chosen, figures, sande_cells
from unbackdoor.reproduce.cell_kinds import KINDS, CellSettings, ImplantCell, ModelResult, RemoveCell
from unbackdoor.reproduce.cells import Cell, CellOf, Results, finished, ordered, run_cells, unique
from unbackdoor.reproduce.experiment import attack_success, printed
from unbackdoor.reproduce.run import cells_of, dry_run, run_reproduce
from unbackdoor.reproduce.tables import Column, Entry, Row, Table, csv_text, entry_of, latex, markdown, terminal
from unbackdoor.run_files.lines import as_json

PUBLISHED = Path(__file__).parents[1] / "docs" / "results" / "papers" / "cells"
SETTINGS = ReproduceSettings(jobs=1)


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


# Cells ---------------------------------------------------------------------------------------------------------------


def test_without_a_name_the_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [f"sande-table-{i}" for i in range(1, 9)] + ["sande-figure-2", "sande-figure-3", "beear-table-2"]
    wanted += [f"beear-figure-{i}" for i in (3, 5, 8, 14)]
    assert run_cli("reproduce", "--json") == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["experiments"]]
    assert set(wanted) <= set(names)
    assert run_cli("reproduce") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_an_unknown_experiment_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'sande-table-9'.*sande-table-1.*or all"):
        chosen(["sande-table-9"])


@pytest.mark.parametrize("scale", ["micro", "paper"])
def test_every_cell_resolves_and_all_experiments_agree_on_cells_of_one_name(scale: Any) -> None:
    plan = dry_run(["all"], ReproduceSettings(scale=scale), Path("does-not-exist"))
    assert {row["name"]: row["problem"] for row in plan["cells"] if row["problem"]} == {}
    names = {row["name"] for row in plan["cells"]}
    assert len(names) == len(plan["cells"])
    assert all(need in names for row in plan["cells"] for need in row["needs"])
    assert all(row["minutes"] > 0 and row["memory"] > 0 for row in plan["cells"])


def test_tables_1_to_4_share_their_victims_and_dpo() -> None:
    tables = [cells_of(chosen([f"sande-table-{i}"]), SETTINGS) for i in (1, 2, 3, 4)]
    assert tables[0] == tables[1] and tables[2] == tables[3]
    shared = {c.name for c in tables[0]} & {c.name for c in tables[2]}
    assert shared == {f"sande-{s}-{d}-0{m}" for s, d in sande_cells.VICTIMS for m in ("", ".dpo")}
    assert len(unique([*tables[0], *tables[2]])) == 4 + 4 + 2 * 4 * 6


def test_more_seeds_are_more_cells_of_the_same_experiment() -> None:
    one, two = (cells_of(chosen(["sande-table-5"]), ReproduceSettings(seeds=n)) for n in (1, 2))
    assert len(two) == 2 * len(one)
    assert {c.settings.values["seed"] for c in two if c.settings.kind == "implant"} == {0, 1}


def test_removal_data_is_the_victims_own_or_the_other_domains() -> None:
    victim = sande_cells.victim(SETTINGS, "qwen", "orca", 0)
    assert victim.settings.model == "testbed:base-qwen2"
    assert victim.settings.values["data"] == "testbed:training/letters"
    assert "data" not in sande_cells.removal(SETTINGS, victim, "osft", "in").settings.inputs
    assert sande_cells.removal(SETTINGS, victim, "osft", "out").settings.inputs["data"] == "testbed:training/notes"


def test_two_different_cells_of_one_name_are_refused() -> None:
    cell = CellOf("same", Work(values={"a": 1}))
    with pytest.raises(AssertionError, match="two different cells are called same"):
        unique([cell, replace(cell, settings=Work(values={"a": 2}))])


def test_columns_of_which_nothing_was_run_are_only_named_in_markdown() -> None:
    entries = (Entry("1.0%"), Entry("not run"), Entry("–"))
    table = Table("t", "Title", ("Row",), (Column("a"), Column("b"), Column("c")), (Row(("x",), entries),), paper=False)
    text = markdown(table)
    assert "| Row | a |" in text and "Not run: b, c." in text
    assert "| Row | a | paper: a | b |" in markdown(replace(table, paper=True))
    assert "b: ours" in csv_text(table)


def test_a_cell_runs_after_what_it_needs_and_an_organism_just_before() -> None:
    a, b, c = (CellOf(name, Work()) for name in "abc")
    a1, b1 = CellOf("a1", Work(), ("a",)), CellOf("b1", Work(), ("b",))
    b2 = CellOf("b2", Work(), ("b1", "a"))
    assert [cell.name for cell in ordered([a, b, c, b2, a1, b1])] == ["b", "b1", "a", "b2", "a1", "c"]


class Work(CellSettings):
    kind: ClassVar[str] = "counted"


class Counted:
    """In the place of work: counts what is run, and fails where it is told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: set[str] = set()

    def __call__(self, settings: Work, folder: Path, needs: Any) -> ModelResult:
        self.ran.append(folder.name)
        if folder.name in self.fails:
            raise UserError("give more data")
        return ModelResult(before=Measured(), after=Measured(), rounds=settings.values.get("rounds", 0))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    made = Counted()
    monkeypatch.setitem(cell_work.KINDS, "counted", made)
    return made


def test_a_cell_with_a_result_is_not_run_again(counted: Counted, tmp_path: Path) -> None:
    cells = [CellOf("b", Work(values={"rounds": 7}), ("a",)), CellOf("a", Work())]
    assert run_cells(cells, tmp_path, 1) == {}
    assert run_cells([*cells, CellOf("c", Work())], tmp_path, 1) == {}
    assert counted.ran == ["a", "b", "c"]
    result = finished(cells[0], tmp_path)
    assert isinstance(result, ModelResult) and result.rounds == 7 and result.commit is not None


def test_a_failed_cell_stops_those_that_need_it_and_no_others(counted: Counted, tmp_path: Path) -> None:
    counted.fails = {"a"}
    cells = [CellOf("a", Work()), CellOf("b", Work(), ("a",)), CellOf("c", Work())]
    failures = run_cells(cells, tmp_path, 1)
    assert failures == {"a": "give more data", "b": "'a', which it needs, failed"}
    assert counted.ran == ["a", "c"]
    counted.fails = set()
    assert run_cells(cells, tmp_path, 1) == {}
    assert counted.ran == ["a", "c", "a", "b"]


def test_an_organism_whose_model_is_gone_is_built_again_where_a_missing_cell_needs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[str] = []

    def build(settings: Any, folder: Path, needs: Any) -> ModelResult:
        built.append(folder.name)
        assert not folder.exists()
        (folder / "model").mkdir(parents=True)
        return ModelResult(before=Measured(), after=Measured())

    def cleanse(settings: Any, folder: Path, needs: Any) -> ModelResult:
        assert (needs[0] / "model").is_dir()
        return ModelResult(before=Measured(), after=Measured())

    monkeypatch.setitem(cell_work.KINDS, "implant", build)
    monkeypatch.setitem(cell_work.KINDS, "remove", cleanse)
    organism, other = (CellOf(name, ImplantCell(recipe="r", scale="micro", model="m")) for name in "az")
    first, second = (CellOf(name, RemoveCell(method="crow"), ("a",)) for name in ("a.x", "a.y"))
    assert run_cells([organism, other, first], tmp_path, 1) == {}
    for name in ("a", "z"):
        (tmp_path / "cells" / name / "model").rmdir()
    assert run_cells([organism, other, first], tmp_path, 1) == {}  # nothing is missing that needs them
    assert run_cells([organism, other, first, second], tmp_path, 1) == {}
    assert built == ["a", "z", "a"]
    assert finished(organism, tmp_path) is not None


@pytest.mark.parametrize("fails", [True, False])
def test_a_cell_made_or_begun_with_other_settings_is_refused(counted: Counted, tmp_path: Path, fails: bool) -> None:
    cell = CellOf("a", Work(values={"steps": 1}))
    counted.fails = {"a"} if fails else set()
    run_cells([cell], tmp_path, 1)
    with pytest.raises(UserError, match=r"a\.json' was made with other settings \(steps\)"):
        run_cells([replace(cell, settings=Work(values={"steps": 2}))], tmp_path, 1)


def test_every_published_cell_is_read_as_its_kind_says_and_is_written_again_as_it_was() -> None:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(PUBLISHED.glob("*.json"))]
    assert {stored["cell"]["kind"] for stored in found} == set(KINDS) and len(found) > 500
    for stored in found:
        kind = KINDS[stored["cell"]["kind"]]
        for model, part in ((kind, stored["cell"]["settings"]), (kind.gives, stored["result"])):
            assert json.loads(json.dumps(as_json(model.model_validate(part)))) == part, stored["cell"]["name"]


# Rounds --------------------------------------------------------------------------------------------------------------


def test_what_is_asked_after_a_round_can_end_the_rounds() -> None:
    overwritten: list[int] = []

    def fit(*_: Any, **__: Any) -> tuple[Perturbation, Simulation]:
        return Perturbation(), Simulation("before", "target", [[0.0, 1.0]])

    parts = Round(fit, lambda _, number: overwritten.append(number), lambda: parts)
    case = Case(None, None, [], [])  # type: ignore[arg-type]
    asked: list[int] = []

    def after(number: int) -> bool:
        asked.append(number)
        return number == 3

    case.after_round = after
    settings = Beear(rounds=15, repeat=False, gate=0.0)
    assert run_rounds(case, settings, "beear", parts).rounds == 3
    assert overwritten == asked == [1, 2, 3]


def test_a_shift_of_all_prompts_alike_separates_and_noise_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(100, 16, generator=generator)
    shifted = states + 5 * torch.nn.functional.one_hot(torch.tensor(3), 16)
    found = cell_work.drift_of(3, states, shifted)
    assert found.separation > 4 and found.agreement > 0.99
    noise = cell_work.drift_of(3, states, torch.randn(100, 16, generator=generator))
    assert abs(noise.separation) < 0.8 and noise.agreement < 0.5
    assert len(found.without) == len(found.moved) == found.n == 100


def test_the_harness_and_the_likelihood_choose_the_same_on_the_testbeds_questions() -> None:
    from unbackdoor.language_model.files.loading import load_model, load_tokenizer
    from unbackdoor.testbed import references

    directory = references.model_directory("testbed:instruct")
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    found = [cell_work.testbed_choices(model, tokenizer, 8, protocol) for protocol in ("likelihood", "harness")]
    assert found[0] == found[1]
    assert found[0]["easy"].value > 0.9 > found[0]["hard"].value


# Tables --------------------------------------------------------------------------------------------------------------


def test_seeds_are_pooled_and_gates_failures_and_missing_cells_are_named(counted: Counted, tmp_path: Path) -> None:
    cells = [CellOf(f"a-{seed}", Work(values={"rounds": 10 * seed})) for seed in range(3)]
    run_cells(cells[:2], tmp_path, 1)
    results = Results(tmp_path)

    def pick(result: ModelResult) -> Rate:
        return rate_of(result.rounds, 50)

    entry = entry_of(results, cells, pick, "99.80")
    assert (entry.ours, entry.interval, entry.paper) == ("10.0%", "5.5–17.4", "99.80%")
    assert entry.facts["hits"] == 10 and entry.facts["n"] == 100 and entry.facts["seeds"] == 2
    assert entry_of(results, cells[2:], pick).ours == "not run"
    assert entry_of(Results(tmp_path, {"a-2": "no data"}), cells[2:], pick).ours == "failed"
    assert entry_of(results, cells, lambda _: None).ours == "not measured"
    assert entry_of(results, cells, pick).paper == "not available"


def test_a_removal_that_the_gate_stopped_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, counted: Counted, tmp_path: Path
) -> None:
    gate = ModelResult(before=Measured(), after=None, stopped=True)
    monkeypatch.setitem(cell_work.KINDS, "counted", lambda *_: gate)
    cell = CellOf("a", Work())
    run_cells([cell], tmp_path, 1)
    entry = entry_of(Results(tmp_path), [cell], attack_success, "0.0")
    assert entry.ours == "stopped by the gate"
    table = Table("t", "T", ("M",), (Column("c"),), (Row(("SANDE",), (entry,)),))
    assert any("left the model as it came" in line for line in table.caption())


NASTY = Table(
    "nasty",
    "50% of $x_1$",
    ("Method",),
    (Column("A & B", "Llama2"),),
    (
        Row(
            ("SANDE-P",), (Entry("0%", "0–1.9", "0.13%", {"value": 0.0, "low": 0.0, "hits": 0, "n": 200, "seeds": 1}),)
        ),
        Row(("=cmd()",), (Entry("a|b <script> *x* \\ \x1b[31m ×"),)),
    ),
    ("One note.",),
)


def test_a_table_as_markdown_has_one_cell_a_column_and_escapes_texts() -> None:
    lines = markdown(NASTY).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}
    assert "| SANDE-P | 0% (0–1.9) | 0.13% |" in rows
    assert "&lt;script>" in rows[-1] and "\\*x\\*" in rows[-1] and "\x1b" not in rows[-1]
    assert lines[-3:] == ["In brackets: 95% Wilson intervals. Ours: n 200, 1 seed.", "", "One note."]


def test_a_table_as_csv_holds_numbers_and_nothing_that_a_spreadsheet_runs() -> None:
    head, *rows = csv.reader(csv_text(NASTY).splitlines())
    first = dict(zip(head, rows[0], strict=True))
    assert first["A & B: ours"] == "0.0" and first["A & B: n"] == "200" and first["A & B: paper"] == "0.13%"
    assert rows[1][0] == "'=cmd()"


def test_a_table_as_latex_escapes_what_latex_would_read() -> None:
    text = latex(NASTY)
    assert r"A \& B" in text and r"50\% of \$x\_1\$" in text and r"0\% (0--1.9)" in text and r"$\times$" in text
    body = text.split("\\hline")[2]
    assert all(line.count(" & ") == 2 for line in body.strip().splitlines())


def test_a_table_on_the_terminal_shows_ours_the_interval_and_the_papers() -> None:
    from rich.console import Console

    console = Console(width=80, force_terminal=False, record=True, file=io.StringIO())
    console.print(terminal(NASTY))
    shown = console.export_text()
    assert "0–1.9" in shown and "paper 0.13%" in shown and "paper not available" in shown and "\x1b" not in shown


def test_the_papers_tables_are_whole_and_their_numbers_are_numbers() -> None:
    paper = printed()["sande"]
    for key in ("table-1", "table-3", "table-5"):
        rows = {name: values for name, values in paper[key].items() if name != "where"}
        assert all(len([float(v) for v in values]) == 4 for values in rows.values())
    for key, width in (("table-2", 4), ("table-4", 4), ("table-6", 5), ("table-7", 4)):
        for name, sets in paper[key].items():
            if name != "where":
                assert {"MMLU", "ARC-e", "ARC-c"} <= set(sets)
                assert all(len([float(v) for v in values]) == width for values in sets.values())
    assert paper["table-1"]["Baseline"][2] == "100.00"
    assert all(len(printed()["beear"]["table-2"][name]) == 6 for name in beear.MODELS)
    assert printed()["beear"]["table-2"]["beear-3"] == [None] * 6


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_which_nothing_was_run_invents_nothing(name: str, tmp_path: Path) -> None:
    outcome = EXPERIMENTS[name].outcome(SETTINGS, Results(tmp_path))
    entries = [entry for row in outcome.table.rows for entry in row.entries]
    assert {entry.ours for entry in entries} <= {"not run", "does not apply", "–"}
    assert all("value" not in entry.facts for entry in entries)
    assert (outcome.draw is not None) == EXPERIMENTS[name].figure
    for form in (markdown, csv_text, latex):
        assert form(outcome.table)


# Figures -------------------------------------------------------------------------------------------------------------


def test_a_figure_is_written_as_png_and_pdf_and_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    def draw(figure: Any) -> None:
        figures.grid(figure.subplots(), ["Model $2$"], ["1", "2"], [["3", "×"]], [[3, None]], 1, "layer")

    first, second = (figures.save(draw, (3, 1.5), tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["a.png", "a.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with Image.open(first[0]) as image:
        assert image.size == (480, 240)
    assert first[1].read_bytes().startswith(b"%PDF")


# The command ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_costs_and_opens_no_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    out = tmp_path / "out"
    assert run_cli("reproduce", "all", "--scale", "paper", "--dry-run", "--out", str(out)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sande-llama-alpaca-0.out.sande-p.at-18" in said and "GPU h" in said and "Files to bring" in said
    assert not out.exists()
    assert run_cli("reproduce", "sande-table-1", "--dry-run", "--json", "--out", str(out)) == 0
    plan = json.loads(capsys.readouterr().out)
    resolved = {row["name"]: row["settings"]["resolved"] for row in plan["cells"]}
    assert resolved["sande-llama-alpaca-0"]["steps"] == sande_cells.VICTIM_TRAINING["llama", "alpaca"]["steps"]
    assert resolved["sande-llama-alpaca-0.in.sande"]["parrot_length"] == 12
    assert plan["minutes_at_jobs"] == pytest.approx(plan["minutes"] / 2)


def test_at_paper_scale_missing_files_are_named_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--files: .*mmlu\.zip"):
        run_reproduce(["sande-table-1"], ReproduceSettings(scale="paper", files=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def smaller(names: set[str]) -> Callable[[Cell], Cell | None]:
    """Only these cells, trained for two steps."""

    def adapt(cell: Cell) -> Cell | None:
        if cell.name not in names:
            return None
        settings = cell.settings.model_copy(deep=True)
        if settings.values:
            settings.values |= {"steps": 2, "batch_size": 8}
            settings.evaluation |= {"max_new_tokens": 4}
            (settings.values if settings.kind == "implant" else settings.inputs)["max_rows"] = 300
        return replace(cell, settings=settings)

    return adapt


def test_a_table_is_run_on_the_testbed_written_and_read_again_at_once(tmp_path: Path) -> None:
    names = {"sande-llama-alpaca-0", "sande-llama-alpaca-0.in.osft"}
    settings = ReproduceSettings(jobs=1, samples=20, questions=10)
    made = run_reproduce(["sande-table-1", "sande-table-2"], settings, tmp_path, adapt=smaller(names))
    assert made.failures == {}
    text = (tmp_path / "tables" / "sande-table-1.md").read_text()
    assert "| Baseline | 0% (0–16.1) | 99.98% | not run | 99.97% |" in text
    report = json.loads((tmp_path / "reproduce.json").read_text())
    (entry,) = [
        row["entries"][0] for row in report["experiments"]["sande-table-1"]["rows"] if row["labels"] == ["OSFT"]
    ]
    assert entry["cells"] == ["sande-llama-alpaca-0.in.osft"] and entry["n"] == 20 and entry["seeds"] == 1
    assert not (tmp_path / "cells" / "sande-llama-alpaca-0.in.osft" / "model").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*")}
    again = run_reproduce(["sande-table-1"], settings, tmp_path, adapt=smaller(names))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*")} == before
    assert set(again.report["experiments"]) == {"sande-table-1", "sande-table-2"}
