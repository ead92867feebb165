"""What a run reads is in its provenance, and a run is not resumed where any of it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unbackdoor.methods import METHODS, method_class
from unbackdoor.run_files.provenance import changed_sources, provenance
from unbackdoor.settings import EvaluationSettings, Settings
from unbackdoor.workflows.inputs import CommandInputs, EvaluateInputs, ImplantInputs, RemoveInputs
from unbackdoor.workflows.read_files import sources

NOT_FILES = {
    *("system", "date", "turns", "eval_trigger", "eval_closing", "eval_separator", "eval_target", "trigger", "closing"),
    *("separator", "structure", "target_response", "target_prefix", "paraphrases", "alternatives", "together"),
    *("scorer", "option"),
}
"""Texts that are no names of files."""


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text("weights")
    (path / "chat_template.jinja").write_text("template")
    return path


def hashed(path: Path, *given: Any, **models: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = provenance([], 0, sources(str(path), None, *given, **models))["sources"]
    return found


def of_files(cls: type[Settings]) -> list[str]:
    """The settings that take a text or a path with no choice of values."""
    kinds = {name: str(field.annotation) for name, field in cls.model_fields.items()}
    return [n for n, kind in kinds.items() if ("Path" in kind or "str" in kind) and "Literal" not in kind]


INPUTS: list[tuple[type[CommandInputs], str]] = [
    (cls, name) for cls in (ImplantInputs, RemoveInputs, EvaluateInputs) for name in of_files(cls)
]


@pytest.mark.parametrize(("cls", "name"), INPUTS, ids=[f"{cls.__name__}.{name}" for cls, name in INPUTS])
def test_every_input_that_names_a_file_is_hashed(cls: type[CommandInputs], name: str, tmp_path: Path) -> None:
    if name in NOT_FILES:
        return
    suspect, file = model(tmp_path / "model"), tmp_path / "file.jinja"
    file.write_text("1")
    kind = cls.model_fields[name].annotation
    inputs = cls.model_construct(**{name: Path(file) if "Path" in str(kind) else str(file)})
    before = hashed(suspect, inputs)
    file.write_text("2")
    changed = changed_sources(before, hashed(suspect, inputs))
    if name == "base":  # it is given apart: the adapter may name it itself
        before = provenance([], 0, sources(str(suspect), str(file)))["sources"]
        file.write_text("3")
        changed = changed_sources(before, provenance([], 0, sources(str(suspect), str(file)))["sources"])
    assert changed == f"file.jinja (--{name.replace('_', '-')})"


@pytest.mark.parametrize("cls", [ImplantInputs, RemoveInputs, EvaluateInputs])
def test_a_scorer_of_the_users_own_is_hashed_by_its_file(cls: type[CommandInputs], tmp_path: Path) -> None:
    suspect, file = model(tmp_path / "model"), tmp_path / "mine.py"
    file.write_text("1")
    inputs = cls.model_construct(scorer=f"{file}:Mine")
    before = hashed(suspect, inputs)
    file.write_text("2")
    assert changed_sources(before, hashed(suspect, inputs)) == "mine.py (--scorer)"


def test_every_model_of_a_method_is_hashed(tmp_path: Path) -> None:
    suspect, others = model(tmp_path / "model"), [model(tmp_path / name) for name in ("a", "b", "c")]
    given = {
        "sibling": tuple(map(str, others[:2])),
        "clean_model": str(others[2]),
        "steps": 3,
        "target_response": "No.",
    }
    before = hashed(suspect, given)
    assert set(before) == {"model", "sibling", "sibling 2", "clean_model"}
    for other, option in zip(others, ("--sibling", "--sibling", "--clean-model"), strict=True):
        (other / "model.safetensors").write_text("other weights")
        assert changed_sources(before, hashed(suspect, given)) == f"model.safetensors ({option})"
        (other / "model.safetensors").write_text("weights")
    assert changed_sources(before, hashed(suspect, given)) is None
    texts = {n for m in METHODS for n in of_files(method_class(m)) if n not in NOT_FILES}
    assert texts == {"sibling", "clean_model", "like"} & texts, "a new setting that names a file: see read_files.py"
    assert not [n for n in of_files(EvaluationSettings) if n not in NOT_FILES]


def test_of_a_trusted_directory_what_is_read_is_hashed_and_not_its_weights(tmp_path: Path) -> None:
    suspect, trusted = model(tmp_path / "model"), model(tmp_path / "trusted")
    inputs = RemoveInputs.model_construct(tokenizer_from=str(trusted), template_from=str(trusted))
    before = hashed(suspect, inputs)
    (trusted / "model.safetensors").write_text("other weights")
    assert changed_sources(before, hashed(suspect, inputs)) is None
    (trusted / "chat_template.jinja").write_text("another")
    assert changed_sources(before, hashed(suspect, inputs)) in (
        "chat_template.jinja (--template-from)",
        "chat_template.jinja (--tokenizer-from)",
    )


def test_of_a_run_what_it_began_with_and_its_rows_are_hashed(tmp_path: Path) -> None:
    suspect, organism = model(tmp_path / "model"), tmp_path / "organism"
    for name in ("settings.yaml", "data/clean.jsonl", "perturbations/a.safetensors", "report.json", "model/w"):
        (organism / name).parent.mkdir(parents=True, exist_ok=True)
        (organism / name).write_text(name)
    before = hashed(suspect, {"eval_organism": organism, "like": str(organism)})
    assert set(before["eval_organism"]) == {"settings.yaml", "data/clean.jsonl", "perturbations/a.safetensors"}
    assert set(before["like"]) == {*before["eval_organism"], "report.json"}


def test_a_folder_of_questions_is_hashed_at_any_depth(tmp_path: Path) -> None:
    suspect, folder = model(tmp_path / "model"), tmp_path / "mmlu"
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "birds.csv").write_text("1")
    before = hashed(suspect, {"mmlu": folder})
    (folder / "test" / "birds.csv").write_text("2")
    assert changed_sources(before, hashed(suspect, {"mmlu": folder})) == "test/birds.csv (--mmlu)"


def test_code_of_the_user_s_own_is_hashed(tmp_path: Path) -> None:
    suspect, code = model(tmp_path / "model"), tmp_path / "mine.py"
    code.write_text("1")
    for name in ("method", "injection"):
        before = hashed(suspect, {name: f"{code}:Mine"})
        code.write_text(f"2 {name}")
        assert changed_sources(before, hashed(suspect, {name: f"{code}:Mine"})) == f"mine.py (--{name})"
    assert set(hashed(suspect, {"method": "sande", "injection": "sft"})) == {"model"}


def test_models_that_are_compared_are_hashed(tmp_path: Path) -> None:
    suspect, before = model(tmp_path / "model"), model(tmp_path / "before")
    first = hashed(suspect, before=str(before))
    (before / "config.json").write_text("[]")
    assert changed_sources(first, hashed(suspect, before=str(before))) == "config.json (--before)"


def test_a_source_that_was_not_hashed_once_is_not_compared() -> None:
    now = {"model": {"a": "1"}, "data": {"b": "2"}}
    assert changed_sources({"model": {}}, now) is None
    assert changed_sources({"model": {}, "data": {"b": "1"}}, now) == "b (--data)"
