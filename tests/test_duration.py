"""How long a run will take is said before it starts, from counted rows and what a row takes here."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.duration import (
    BACKWARD,
    BACKWARD_FROZEN,
    Pace,
    clock,
    firing_work,
    measuring_work,
    sentence,
)
from unbackdoor.evaluation.suite import Suite
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.fine_tune import FineTune
from unbackdoor.methods.osft import Osft
from unbackdoor.methods.sande import Sande
from unbackdoor.scorers.target_response import TargetResponse
from unbackdoor.settings import EvaluationSettings, VerdictSettings
from unbackdoor.workflows.evaluate import run_evaluate
from unbackdoor.workflows.inputs import EvaluateInputs
from unbackdoor.workload import Work

ROWS = [Record(f"Name {i} rivers.", "The river runs to the sea.") for i in range(12)]
EIGHT = {"steps": 10, "batch_size": 8}


def test_rows_of_every_term_and_round_are_counted() -> None:
    assert FineTune.make(EIGHT).training_work(1).trained == 80
    assert Osft.make({**EIGHT, "trigger": "x"}).training_work(1).trained == 160
    assert Osft.make({**EIGHT, "trigger": "x"}, "paper").training_work(1).trained == 80
    assert Sande.make({**EIGHT, "target_response": "x"}).training_work(3).trained == 3 * 160
    assert Beear.make(EIGHT).training_work(2).trained == 2 * 240


def test_only_a_method_that_simulates_fits_anything() -> None:
    assert Beear.make(EIGHT).simulating_work(2).fitted > 0
    assert FineTune.make(EIGHT).simulating_work(2) == Work()
    assert Beear.make(EIGHT).training_work(2).fitted == 0


def test_rounds_may_end_early_only_where_they_are_repeated() -> None:
    assert Beear.make({"rounds": 6, "least_rounds": 4}).round_range == (4, 6)
    assert Beear.make({}, "paper").round_range == (6, 6)
    assert FineTune.make({}).round_range == (1, 1)


def test_answers_are_counted_once_a_set() -> None:
    plain = Suite(ROWS, None, texts=ROWS)
    assert measuring_work(plain) == Work(read=12, answers=12)
    attacked = Suite(
        ROWS, TargetResponse(target="You are stupid"), Trigger("Current year 2023"), texts=ROWS, allowed=ROWS[:5]
    )
    assert measuring_work(attacked) == Work(read=12, answers=12 + 12 + 12 + 5), (
        "with the trigger, without, with a harmless insert"
    )
    assert firing_work(attacked).answers > firing_work(plain).answers == 0


def test_seconds_are_rows_times_what_a_row_takes() -> None:
    pace = Pace(read=0.5, answer=2.0)
    assert pace.seconds(Work(read=4, answers=3)) == 8
    assert pace.seconds(Work(trained=2)) == 1 + BACKWARD
    assert pace.seconds(Work(trained=2), lora=True) == pace.seconds(Work(fitted=2)) == 1 + BACKWARD_FROZEN


@pytest.mark.parametrize("seconds", [0.2, 5, 100, 3600, 8000, 90_000])
def test_a_duration_reads_like_one(seconds: float) -> None:
    number, unit = clock(seconds).split()
    assert float(number) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.05, abs=1)


def test_a_range_is_said_where_it_is_one() -> None:
    assert "about 10 min to 20 min" in sentence(600, 1200)
    assert "to" not in sentence(600, 601).split("about")[1].split("on")[0]


def test_a_model_is_timed_on_rows_that_fit_and_stays_as_it_is() -> None:
    model, chat = tiny.model(), tiny.chat()
    before = [p.clone() for p in model.parameters()]
    pace = Pace.measured(model, chat, ROWS, EvaluationSettings.make({}))
    assert 0 < pace.read < pace.answer
    assert all((a == b).all() and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_a_command_says_it_once_and_not_when_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = EvaluateInputs.make({"data": "testbed:held-out/letters"})
    evaluation = VerdictSettings.make({"samples": 4, "max_new_tokens": 2})
    for times in (1, 0):
        run_evaluate("testbed:instruct", inputs, evaluation, out=tmp_path / "run", resume=True)
        assert capsys.readouterr().err.count("this will take about") == times
