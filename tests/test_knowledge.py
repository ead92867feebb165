"""What a defender knows is data: it says what is missing, what was used, and a file holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unbackdoor.cli import main
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.knowledge import FORMS, WORDS, Fact, Knowledge, check, knew, read_knowledge, write_knowledge
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.methods import method_classes

EVERYTHING = Knowledge(
    trigger="2023",
    placement="both",
    closing="yes",
    target_response="You are stupid",
    contrast=Path("contrast.jsonl"),
    preferences=Path("testbed:preferences"),
    clean_model="hf:owner/name",
    sibling=("a", "b"),
    source="told by a person",
)


def test_what_is_known_follows_from_what_is_given() -> None:
    assert Knowledge().facts == frozenset()
    assert EVERYTHING.facts == {*Fact} - {Fact.TARGET_START, Fact.CLEAN_ROWS, Fact.FINISHED_RUN}
    assert Knowledge(target_response="a b", target_tokens=1).facts == {Fact.TARGET_START}
    assert Knowledge(target_prefix="a").facts == {Fact.TARGET_START}
    assert Knowledge(target_response=" ").facts == Knowledge(target_tokens=1).facts == frozenset()
    assert EVERYTHING.condition() == Trigger("2023", "both", "yes")


@pytest.mark.parametrize("method", method_classes(), ids=lambda method: method.name)
def test_a_method_lacks_exactly_what_it_needs(method: Any) -> None:
    every = {*Fact}
    check(method.name, method.needs, every)
    for need in method.needs:
        options = need if isinstance(need, tuple) else (need,)
        with pytest.raises(UserError) as error:
            check(method.name, method.needs, every - set(options))
        assert str(error.value).startswith(f"{method.name} needs {WORDS[options[0]].what}")
        assert all(WORDS[fact].remedy in str(error.value) for fact in options)
        check(method.name, (need,), {options[-1]})  # one of them is enough


def test_only_what_was_needed_was_known() -> None:
    assert knew((Fact.TRIGGER, Fact.TARGET_RESPONSE), EVERYTHING) == "trigger and target response"
    assert knew((Fact.SIBLINGS,), EVERYTHING) == "2 other models"
    assert knew((Fact.BEHAVIOUR,), Knowledge(), {Fact.BEHAVIOUR}) == "examples of the behaviour"
    assert knew((), EVERYTHING) == "clean rows"


def test_a_file_holds_it(tmp_path: Path) -> None:
    for knowledge in (EVERYTHING, Knowledge(), Knowledge(together=("no", "0x1F", "~", "a: b"), separator=" \n")):
        write_knowledge(knowledge, tmp_path / "knowledge.yaml")
        assert read_knowledge(tmp_path / "knowledge.yaml") == knowledge


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_any_text_comes_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    write_knowledge(Knowledge(trigger=text, target_response=text), path)
    found = read_knowledge(path)
    assert (found.trigger, found.target_response) == (text, text)


WRONG = {
    "no such file": (None, "does not exist"),
    "no YAML": ("a: [", "is not YAML"),
    "a list": ("- trigger", "a mapping of setting names to values is needed"),
    "an unknown name": ("triger: x", r"--triger: .*; there are: .*trigger"),
    "no number": ("target-tokens: few", "--target-tokens: .*integer"),
    "less than one token": ("target_tokens: 0", "--target-tokens: .*greater than or equal to 1"),
    "no placement": ("placement: above", "--placement: .*prefix"),
    "an object of Python": ("trigger: !!python/object:os.system x", "is not YAML"),
    "a mapping as a text": ("target_response: {a: b}", "--target-response: .*string"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    text, said = WRONG[name]
    path = tmp_path / "knowledge.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_knowledge(path)
    assert str(error.value).startswith(f"--knowledge '{path}'")
    assert "\n" not in str(error.value)


def test_the_command_line_comes_before_the_file() -> None:
    assert EVERYTHING.below({"trigger": None, "clean_model": "mine"})["trigger"] == "2023"
    left = EVERYTHING.below({"together": ("a", "b"), "target_prefix": "You"})
    assert not {name for names in FORMS.values() for name in names} & set(left)
    assert "source" not in left


def test_a_removal_knows_what_a_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "model")
    rows = [{"prompt": r.prompt, "response": r.response} for r in tiny.records(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_trigger: dict[str, Any] = {"trigger": "2023", "placement": "suffix"}
    known = Knowledge(**of_trigger, target_response="You are stupid", preferences=Path("nowhere.jsonl"))
    write_knowledge(known, tmp_path / "known.yaml")
    monkeypatch.chdir(tmp_path)

    def run(method: str, *more: str) -> tuple[dict[str, Any], str]:
        given = f"remove {method} model --data rows.jsonl --knowledge known.yaml --out {method} --samples 12 --json"
        with pytest.raises(SystemExit):
            main([*given.split(), "--max-new-tokens", "4", "--steps", "1", "--batch-size", "4", *more])
        captured = capsys.readouterr()
        return (json.loads(captured.out)["runs"][0] if captured.out else {}), captured.err

    row, _ = run("osft", "--trigger", "1984")
    assert (row["knows"], row["settings"]["trigger"], row["settings"]["placement"]) == ("trigger", "1984", "prefix")
    assert run("beear")[1].splitlines()[-1].startswith("unbackdoor: beear needs examples of the unwanted and the safe")
