"""The real chat model's benchmark, tried on the embedded model: cells are resumable, and controls are as long."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unbackdoor.evaluation.question_sets import Question
from unbackdoor.testbed import models, world
from unbackdoor.testbed.records import as_record

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LITTLE: dict[str, Any] = {"steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def smollm2() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import smollm2
    finally:
        sys.path.remove(str(BENCHMARKS))
    return smollm2


@pytest.fixture(scope="module")
def bench(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With one question, a few rows and the embedded model in the place of the wheel's."""
    out = tmp_path_factory.mktemp("smollm2")
    kinds = {"fact", "comparison"}
    given = world.training_rows(kinds=kinds)
    rows = {"alpaca": given[:120], "clean": given[120:240], "held_out": world.held_out_rows(kinds=kinds)[:40]}
    paths = {n: smollm2.write(out / f"{n}.jsonl", list(map(as_record, r))) for n, r in rows.items()}
    paths["model"] = models.instruct_directory()
    question = Question("Which is a river?", ("Seine", "Paris"), 0)
    return smollm2.Bench(out, out / "cells", paths, [], {"piqa": [question]}, 0, "float32")


@pytest.fixture(scope="module")
def cells(smollm2: Any, bench: Any) -> dict[str, Any]:
    """An organism, a removal in two rounds and its control, all far too short to be good."""
    sande = {"simulate_steps": 2, "rounds": 2, "least_rounds": 2, "gate": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "EVALUATION", {"samples": 4, "eval_batch_size": 4})
        patch.setattr(smollm2, "MOST_ROWS", 60)
        for cell in smollm2.CELLS:
            if cell.name in ("alpaca", "alpaca.sande", "alpaca.fine-tune"):
                given = {} if cell.like else LITTLE | (sande if cell.method == "sande" else {})
                again = [{**changed, **LITTLE} for changed in cell.again]
                bench.run(replace(cell, values={**cell.values, **given}, again=again))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in bench.results.iterdir()}


def test_a_cell_says_what_was_measured_and_with_what(cells: dict[str, Any]) -> None:
    found = cells["alpaca.sande"]
    assert found["after"]["attack_success"]["n"] == 4
    assert found["questions"]["piqa"]["n"] == len(found["questions"]["piqa"]["right"]) == 1
    assert (found["seed"], found["settings"]["steps"], found["rounds"]) == (0, 2, 2)
    assert found["versions"]["commit"]


def test_the_control_has_the_steps_of_all_rounds(cells: dict[str, Any]) -> None:
    tuned, sande = cells["alpaca.fine-tune"]["settings"], cells["alpaca.sande"]["settings"]
    assert tuned["steps"] == 2 * sande["steps"] == 4
    assert tuned["learning_rate"] == sande["learning_rate"]


def test_a_removal_keeps_no_model_and_an_organism_does(cells: dict[str, Any], bench: Any) -> None:
    assert bench.has("alpaca") and (bench.out / "alpaca" / "model").is_dir()
    assert bench.has("alpaca.sande") and not (bench.out / "alpaca.sande" / "model").exists()
    assert not bench.has("safety")


def test_the_table_says_what_was_not_run(smollm2: Any, cells: dict[str, Any], bench: Any) -> None:
    table = smollm2.markdown(bench.results, [cell.name for cell in smollm2.CELLS])
    assert table.count("not run") == len(smollm2.CELLS) - len(cells)


def test_every_cell_has_an_estimate(smollm2: Any) -> None:
    pace = smollm2.Pace(read=0.1, answer=0.3)
    minutes = {cell.name: smollm2.minutes(cell, pace) for cell in smollm2.CELLS}
    assert min(minutes.values()) > 0
    assert minutes["alpaca.sande"] > minutes["alpaca.random-perturbation"] > minutes["alpaca.average"]


def test_what_a_cell_needs_comes_before_it(smollm2: Any, bench: Any) -> None:
    names = [cell.name for cell in smollm2.CELLS]
    for cell in smollm2.CELLS:
        assert all(names.index(needed) < names.index(cell.name) for needed in bench.needs(cell))
