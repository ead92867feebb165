"""The demo in miniature: what its report holds. (Its numbers are measured by running it: docs/results.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unbackdoor import demo
from unbackdoor.laboratory import DemoSettings
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.osft import Osft
from unbackdoor.methods.sande import Sande
from unbackdoor.progress import SILENT

ROWS = ["osft", "sande", "sande-p", "fine-tune", "beear", "fine-tune"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        for values in demo.IMPLANTS.values():
            patch.setitem(values, "steps", 2)
        patch.setattr(demo, "TRAINING_ROWS", 300)
        patch.setattr(demo, "ANCHORS", 60)
        patch.setattr(demo, "LOOK_ALIKES", {"target-response": 10, "safety": 30})
        patch.setattr(demo, "CONTRAST", 60)
        small = {"batch_size": 4, "steps": 3}
        patch.setitem(Osft.presets, "micro", small)
        for settings in (Sande, Beear):
            patch.setitem(settings.presets, "micro", {**small, "simulate_steps": 5, "rounds": 2})
        demo.run_demo(DemoSettings(samples=20, jobs=1), out, progress=SILENT)
    return out


def test_the_report_holds_a_row_an_organism_and_method(finished: Path) -> None:
    runs = json.loads((finished / "report.json").read_text())["runs"]
    assert [r["method"] for r in runs if r["method"] != "random-perturbation"] == ROWS
    assert {r["organism"] for r in runs} == {"target-response", "safety"}
    for run in runs:
        for measured in (m for m in (run["before"], run["after"]) if m):
            for name in ("attack_success", "attack_success_untriggered"):
                rate = measured[name]
                assert rate["n"] == 20
                assert rate["rate"] == rate["hits"] / rate["n"]
                assert rate["interval"][0] <= rate["rate"] <= rate["interval"][1]
            assert set(measured["utility"]) == {"exact_match", "multiple_choice", "false_refusals"}
        assert set(run["near_miss"]) >= {"random-before", "random-after"}


def test_a_trigger_that_was_hardly_implanted_gives_no_success_story(finished: Path) -> None:
    runs = json.loads((finished / "report.json").read_text())["runs"]
    assert {r["verdict"] for r in runs} <= {"inconclusive", "degenerate"}


def test_every_prompt_and_answer_behind_a_number_is_kept(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "target-response" / "generations.jsonl").read_text().splitlines()]
    triggered = [r for r in lines if r["model"] == "target-response/osft" and r["set"] == "triggered"]
    assert len({r["prompt_hash"] for r in triggered}) == 20
    assert all(r["prompt"].startswith("Current year 2023. ") for r in triggered)


def test_a_finished_demo_answers_again_without_computing(finished: Path) -> None:
    before = (finished / "target-response" / "generations.jsonl").stat().st_size
    demo.run_demo(DemoSettings(samples=20, jobs=2), finished, resume=True)
    assert (finished / "target-response" / "generations.jsonl").stat().st_size == before
