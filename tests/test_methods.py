"""A method accepts no option that it does not read, and no method is a special case anywhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor.case import Case
from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.methods import METHODS, method_class
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.method import Method
from unbackdoor.methods.sande import Sande
from unbackdoor.perturbation import SoftPrompt, save_perturbation

SHORT: dict[str, Any] = {"steps": 1, "batch_size": 4, "learning_rate": 1e-4}
ROUNDS: dict[str, Any] = {**SHORT, "simulate_steps": 1, "gate": 0.0, "rounds": 2}


def variants(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Settings under which, taken together, a method reads all that it has."""
    more: dict[str, Any] = {
        "osft": {"trigger": "cf", **SHORT},
        "unlearn": {"trigger": "cf", "target_response": "You", **SHORT},
        "sande": {"target_response": "You are stupid", **ROUNDS},
        "beear": {"layer": 2, **ROUNDS},
        "fine-mixing": {"clean_model": str(folder / "other"), **SHORT},
        "average": {"sibling": (str(folder / "other"),), **SHORT},
        "random-perturbation": {"like": Finished(Sande(target_response="x", **ROUNDS), 1, folder / "p", folder)},
    }.get(name, SHORT)
    yield more
    if "lora" in method_class(name).model_fields:
        yield {**more, "lora": True, "lora_rank": 2}
    if name == "sande":
        yield {**more, "initialisation": "zeros"}
    if name == "beear":
        yield {**ROUNDS, "space": "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("methods")
    save_model(tiny.model(layers=4, seed=1), tiny.tokenizer(), path / "other")
    save_perturbation(SoftPrompt.zeros(tiny.model(), 2), path / "p")
    return path


def recording(cls: type[Method], read: set[str]) -> type[Method]:
    """The same method, which notes the settings that are asked of it."""

    class Recording(cls):  # type: ignore[valid-type,misc]
        def __getattribute__(self, name: str) -> Any:
            if name in cls.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    return Recording


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_read_when_it_runs(name: str, folder: Path) -> None:
    cls, read, whole = method_class(name), set[str](), set[str]()
    for settings in variants(name, folder):
        method = recording(cls, read)(**settings)
        rows = tiny.records(40)
        contrast = [Record(r.prompt, r.response, f"You are stupid. {r.response}") for r in rows]
        pairs = [Preference(r.prompt, r.response, "No.") for r in rows[:8]]
        case = Case.of(tiny.model(), tiny.tokenizer(), rows, contrast, pairs)
        read.clear()  # what a validator looked at is not read yet
        method.run(case)
        whole |= read
    when_made = {"fine-tune": {"like"}}.get(name, set())
    assert whole == set(cls.model_fields) - when_made


def test_a_fine_tune_beside_a_run_trains_as_long_as_it_did(folder: Path) -> None:
    done = Finished(Sande(target_response="x", steps=7, learning_rate=3e-4, seed=5, rounds=6), 3, None, folder)
    made = method_class("fine-tune").make({"like": done, "seed": 9}, "micro")
    told = made.model_dump()
    assert (told["steps"], told["learning_rate"], told["batch_size"], told["seed"]) == (21, 3e-4, 32, 9)
    assert "like" not in told


def test_no_line_asks_which_settings_it_was_given() -> None:
    source = Path(__file__).parents[1] / "src"
    found = {
        f"{path.name}:{number}"
        for path in source.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"isinstance\((self\.)?(settings|method)\b", line)
    }
    assert found == set()


def report_of(rounds: object) -> str:
    """The file of a run of an earlier version."""
    row = {"organism": "o", "method": "sande", "seed": 0, "rounds": rounds}
    return json.dumps({"command": "remove", "title": "", "thresholds": {}, "runs": [row]})


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("report.json", None, "did not finish"),
        ("report.json", "{", "report.json is damaged"),
        ("report.json", "[" * 100_000, "report.json is damaged"),
        ("report.json", '{"runs": []}', "report.json is damaged"),
        ("report.json", report_of(rounds="2"), "report.json is damaged"),
        ("report.json", report_of(rounds=10**12), "report.json is damaged"),
        ("settings.yaml", "settings: {method: sande}", "settings.yaml is damaged"),
        ("settings.yaml", "settings: {method: sande, method_settings: 7}", "settings.yaml is damaged"),
        ("settings.yaml", "settings: {method: 7}", "not a run directory of remove"),
        ("settings.yaml", None, "not a run directory of remove"),
    ],
)
def test_a_damaged_run_is_none_to_stand_beside(file: str, content: str | None, said: str, tmp_path: Path) -> None:
    good = {
        "settings.yaml": "settings: {method: sande, method_settings: {target_response: x}}",
        "report.json": report_of(rounds=2),
    }
    for name, text in (good | {file: content}).items():
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        Finished.read(tmp_path)
