"""The experiments at paper scale run: on tiny random models of the papers' architectures, with rows in the data's own
columns. One cell of every kind, method and architecture, with every table and figure made of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_paper_recipes import FAMILIES, stand_in

from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.reproduce import chosen
from unbackdoor.reproduce.cells import Cell
from unbackdoor.reproduce.run import cells_of, run_reproduce

OWN_FILES = ("contrast.jsonl", "code_backdoor.jsonl")


def question_files(folder: Path) -> None:
    """Two questions of each published set, in their published shapes."""
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as file:
        file.writestr("data/test/sums_test.csv", "One and one?,1,2,3,4,B\nTwo and one?,1,2,3,4,C\n")
    choices = [
        {"label": label, "text": text} for label, text in zip("ABCD", ("red", "blue", "sea", "sky"), strict=True)
    ]
    rows = [{"id": str(i), "question": {"stem": f"What is {i}?", "choices": choices}, "answerKey": "A"} for i in (1, 2)]
    for name in ("ARC-Easy-Test.jsonl", "ARC-Challenge-Test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_domain(folder: Path) -> str:
    """Rows in OpenOrca's columns whose prompts are none of the first domain's."""
    path = folder / "orca.jsonl"
    rows = [{"system_prompt": "", "question": f"Please: {r.prompt}", "response": r.response} for r in tiny.records(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny_models(folder: Path) -> dict[str, str]:
    """A random model a family, as a directory."""
    made = {}
    for family in ("llama", "mistral", "qwen2"):
        made[family] = str(folder / family)
        save_model(tiny.model(family, max_position_embeddings=512), tiny.tokenizer(), folder / family)
    return made


def one_of_each(settings: ReproduceSettings) -> set[str]:
    """The first cell of every kind, method, model and injection, one of every experiment, and what they need."""
    cells = cells_of(chosen(["all"]), settings)
    by_name = {cell.name: cell for cell in cells}
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        origin = by_name[cell.needs[0]] if cell.needs else cell
        kept = origin.settings
        attack = kept.values.get("injection") if cell.settings.kind == "implant" else None
        model = kept.model if cell.settings.kind == "implant" else None
        found.setdefault((cell.settings.kind, cell.settings.method, cell.settings.paper, model, attack), cell)
    names = {cell.name for cell in found.values()}
    for experiment in chosen(["all"]):
        own = [cell.name for cell in experiment.cells(settings) if cell.settings.kind != "implant"]
        names |= set(own[:1]) if not names & set(own) else set()
    return names | {need for name in names for need in by_name[name].needs}


def smaller(folder: Path, names: set[str], models: dict[str, str]) -> Callable[[Cell], Cell | None]:
    """These cells, on tiny models and stand-in rows, with two steps of everything."""

    def local(values: dict[str, Any]) -> dict[str, Any]:
        made = dict(values)
        for key in ("data", "contrast", "eval_data", "preferences"):
            if key in made:
                source = Path(made[key]).name if Path(made[key]).name in OWN_FILES else made[key]
                made[key] = other_domain(folder) if source == "Open-Orca/OpenOrca" else stand_in(source, folder)
        return made

    def model_of(name: str) -> str:
        return models[FAMILIES[name.split("/", maxsplit=1)[0]]]

    def adapt(cell: Cell) -> Cell | None:
        if cell.name not in names:
            return None
        settings = cell.settings.model_copy(deep=True)
        if hasattr(settings, "model"):
            settings.model = model_of(settings.model)
        settings.values, settings.inputs = local(settings.values), local(settings.inputs)
        if settings.kind in ("probabilities", "drift"):
            settings.prompts = 6
            if settings.kind == "drift":
                settings.layer = 1
            return replace(cell, settings=settings)
        values = settings.values
        values |= {"steps": 2, "batch_size": 4, "micro_batch_size": 2}
        if settings.kind == "implant" and values.get("injection") == "reward":
            values |= {"warmup_steps": 1, "reward_steps": 2, "rl_steps": 1, "rl_new_tokens": 4}
        if "clean_model" in values:
            values["clean_model"] = model_of(values["clean_model"])
        if settings.method == "sande":
            values["simulate_steps"] = 2
        if settings.kind == "rounds" or (settings.kind == "remove" and settings.method == "beear"):
            values |= {"simulate_steps": 2, "rounds": 2, "layer": 1}
        settings.evaluation = {"samples": 4, "max_new_tokens": 4}
        return replace(cell, settings=settings)

    return adapt


def test_every_experiment_runs_at_paper_scale(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    question_files(data)
    for name in OWN_FILES:
        stand_in(name, data)
    settings = ReproduceSettings(scale="paper", jobs=1, files=data)
    names = one_of_each(settings)
    models = tiny_models(tmp_path)
    out = tmp_path / "out"
    made = run_reproduce(["all"], settings, out, adapt=smaller(data, names, models))

    assert made.failures == {}
    assert {path.stem for path in (out / "tables").glob("*.md")} == {experiment.name for experiment in chosen(["all"])}
    figures = {experiment.name for experiment in chosen(["all"]) if experiment.figure}
    for suffix in ("png", "pdf"):
        assert {path.stem for path in (out / "figures").glob(f"*.{suffix}")} == figures
    shown = made.report["experiments"]
    measured = {
        name: [entry for row in table["rows"] for entry in row["entries"] if "not run" not in entry["ours"]]
        for name, table in shown.items()
    }
    assert all(measured.values()), [name for name, entries in measured.items() if not entries]
    used = {cell for entries in measured.values() for entry in entries for cell in entry.get("cells", ())}
    assert used <= names
    utilities = [row["entries"][0] for row in shown["sande-table-2"]["rows"] if row["labels"][0] == "Baseline"]
    assert [entry["n"] for entry in utilities] == [2, 2, 2]
    grid = [entry for row in shown["beear-figure-5"]["rows"] for entry in row["entries"] if "n" in entry]
    assert [entry["ours"] for entry in grid] in (["×"], ["0"], ["1"], ["2"])


@pytest.mark.parametrize("name", ["sande-table-1", "beear-table-2"])
def test_at_paper_scale_every_cell_names_a_public_model(name: str) -> None:
    settings = ReproduceSettings(scale="paper")
    models = {c.settings.model for c in cells_of(chosen([name]), settings) if c.settings.kind == "implant"}
    assert all(model.split("/")[0] in FAMILIES for model in models)
