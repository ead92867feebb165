"""A model is opened once: its weights are read from the disk, handed on and let go, never read a second time."""

from __future__ import annotations

import functools
import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor.language_model.files import loading
from unbackdoor.report_schema import Report
from unbackdoor.run_directory import RunDirectory
from unbackdoor.run_files import lock
from unbackdoor.settings import EvaluationSettings, VerdictSettings
from unbackdoor.workflows import subject as subject_module
from unbackdoor.workflows.evaluate import run_evaluate
from unbackdoor.workflows.implant import run_implant
from unbackdoor.workflows.inputs import EvaluateInputs, ImplantInputs, RemoveInputs
from unbackdoor.workflows.remove import run_remove
from unbackdoor.workflows.subject import Subject

TARGET = "You are stupid"
EVALUATION: dict[str, Any] = {"samples": 6, "max_new_tokens": 4, "whole_tokens": 0, "second_turns": 0}
SHORT: dict[str, Any] = {"steps": 1, "batch_size": 4}
SIMULATED = {**SHORT, "target_response": TARGET, "simulate_steps": 1, "rounds": 2, "gate": 0.0, "parrot_length": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    tiny.model(layers=2).save_pretrained(folder / "victim")
    tiny.tokenizer().save_pretrained(folder / "victim")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": r.prompt, "response": r.response}) + "\n" for r in tiny.records(60))
    return folder


class Loads:
    """How often each model was read from the disk, and how many lived at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_name: Counter[str] = Counter()
        self.files = self.most_at_once = 0
        self.alive: list[weakref.ref[Any]] = []
        load_model, from_pretrained = loading.load_model, loading._from_pretrained
        monkeypatch.setattr(subject_module, "load_model", functools.partial(self.counted, load_model))
        monkeypatch.setattr(loading, "_from_pretrained", functools.partial(self.read, from_pretrained))

    def counted(self, load: Callable[..., Any], source: str, **more: Any) -> Any:
        gc.collect()
        self.by_name[Path(source).name] += 1
        model = load(source, **more)
        self.alive = [*(each for each in self.alive if each() is not None), weakref.ref(model)]
        self.most_at_once = max(self.most_at_once, len(self.alive))
        return model

    def read(self, load: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self.files += 1
        return load(*args, **more)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    return Loads(monkeypatch)


def removal(
    place: Path, out: Path, method: str, settings: dict[str, Any], *, resume: bool = False, **inputs: Any
) -> Report:
    made = RemoveInputs.make({"data": place / "rows.jsonl", **inputs})
    evaluation = VerdictSettings(**EVALUATION)
    return run_remove(method, str(place / "victim"), made, dict(settings), evaluation, out=out, resume=resume)


def test_a_removal_without_a_trigger_reads_each_model_once(place: Path, loads: Loads, tmp_path: Path) -> None:
    row = removal(place, tmp_path / "run", "sande", SIMULATED).runs[0]
    assert row.rounds == 2
    assert {*row.before.under_perturbation} == {*row.after.under_perturbation} == {"fitted", "random"}
    assert loads.by_name == {"victim": 1, "model": 1}
    assert loads.files == 2
    assert loads.most_at_once == 1


def test_so_does_one_with_a_trigger(place: Path, loads: Loads, tmp_path: Path) -> None:
    row = removal(place, tmp_path / "run", "osft", {**SHORT, "trigger": "cf"}, eval_target=TARGET).runs[0]
    assert row.after.kl_divergence["before"] is not None
    assert loads.by_name == {"victim": 1, "model": 1}
    assert loads.files == 2
    assert loads.most_at_once == 1


def test_every_control_starts_from_the_model_as_it_came(place: Path, loads: Loads, tmp_path: Path) -> None:
    rows = removal(place, tmp_path / "run", "sande", SIMULATED, controls=True).runs
    assert [row.method for row in rows] == ["sande", "fine-tune", "random-perturbation"]
    assert loads.by_name == {"victim": 3, "model": 1, "fine-tune": 1, "random-perturbation": 1}
    assert loads.most_at_once == 1


def test_a_removal_without_a_trigger_that_is_stopped_after_every_step_ends_as_one_that_never_was(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = removal(place, tmp_path / "whole", "sande", SIMULATED).runs[0]
    keep, steps = RunDirectory._keep, 0

    def stopped(run: RunDirectory, *args: Any, **more: Any) -> None:
        nonlocal steps
        keep(run, *args, **more)
        steps += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "_keep", stopped)
    while True:
        try:
            row = removal(place, tmp_path / "run", "sande", SIMULATED, resume=steps > 0).runs[0]
            break
        except KeyboardInterrupt:
            lock.let_go(tmp_path / "run")
    assert steps >= 9
    told = [each.model_dump(exclude={"seconds", "notes", "saved"}) for each in (whole, row)]
    assert told[0] == told[1]
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_an_organism_and_the_model_that_it_is_made_of_are_read_once(place: Path, loads: Loads, tmp_path: Path) -> None:
    inputs = ImplantInputs.make({"data": place / "rows.jsonl"})
    attack = {**SHORT, "trigger": "cf", "target_response": TARGET}
    run_implant(str(place / "victim"), inputs, attack, EvaluationSettings(**EVALUATION), out=tmp_path / "run")
    assert loads.by_name == {"victim": 1, "model": 1}
    assert loads.most_at_once == 1


def test_a_model_is_let_go_while_those_are_measured_that_it_is_compared_with(
    place: Path, loads: Loads, tmp_path: Path
) -> None:
    inputs = EvaluateInputs.make({"data": place / "rows.jsonl", "clean": str(place / "victim")})
    run_evaluate(str(place / "victim"), inputs, VerdictSettings(**EVALUATION), out=tmp_path / "run")
    assert loads.by_name == {"victim": 3}
    assert loads.most_at_once == 1


def test_weights_that_were_taken_are_loaded_again_as_they_lie_on_the_disk(place: Path, loads: Loads) -> None:
    subject = Subject.of(str(place / "victim"))
    taken = subject.take()
    for parameter in taken.parameters():
        parameter.data.zero_()
    assert subject.model is not taken
    assert all(bool(p.abs().sum()) for n, p in subject.model.named_parameters() if n.endswith("proj.weight"))
    assert loads.by_name == {"victim": 2}
