"""What cannot work is refused before the run directory exists, in one line with numbers and a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from unbackdoor.case import Case
from unbackdoor.cli import main
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.lat import Lat
from unbackdoor.methods.osft import Osft
from unbackdoor.methods.sande import Sande
from unbackdoor.methods.unlearn import Unlearn
from unbackdoor.run_files import disk_room
from unbackdoor.scorers.target_response import TargetResponse
from unbackdoor.workflows.askable import check_asks_something, check_target_fits, check_trigger_fits

CONTEXT = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("early") / "model"
    save_model(tiny.model(layers=2), tiny.tokenizer(), path)
    rows = [{"prompt": r.prompt, "response": r.response} for r in tiny.records(60)]
    pairs = [{**row, "unwanted": "You are stupid."} for row in rows]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path.parent / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return path


def refused(capsys: pytest.CaptureFixture[str], model: Path, *given: str) -> str:
    out = model.parent / "run"
    command, *more = [text.format(pairs=model.parent / "pairs.jsonl") for text in given]
    method = [command, *([more.pop(0)] if command == "remove" else [])]
    arguments = [*method, str(model), "--data", str(model.parent / "rows.jsonl"), "--max-new-tokens", "4", *more]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(out)])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unbackdoor:")]
    assert (ended.value.code, len(said), out.exists()) == (2, 1, False), said
    return said[0]


LONG = "You are stupid. " * 60
TOO_LONG: list[tuple[list[str], str]] = [
    (["remove", "sande", "--target-response", LONG], "target response"),
    (["remove", "sande", "--target-prefix", LONG], "target response"),
    (["remove", "sande", "--target-response", "You are stupid.", "--parrot-length", "127"], "--parrot-length"),
    (["remove", "osft", "--trigger", "sea", "--eval-target", LONG], "target response"),
    (["remove", "osft", "--trigger", "Current year 2023 " * 60], "the trigger"),
    (["remove", "unlearn", "--trigger", "sea", "--target-response", LONG], "target response"),
    (["remove", "beear", "--contrast", "{pairs}", "--length", "120"], "a shift of 120 prompt positions"),
    (["remove", "beear", "--contrast", "{pairs}", "--space", "input", "--length", "125"], "--contrast"),
    (["implant", "--trigger", "sea", "--target-response", LONG], "target response"),
    (["implant", "--trigger", "sea", "--target-response", LONG[:240], "--max-length", "40"], "poisoned row"),
    (["evaluate", "--trigger", "sea", "--target-response", LONG], "target response"),
]


@pytest.mark.parametrize(("given", "named"), TOO_LONG, ids=[" ".join(given)[:50] for given, _ in TOO_LONG])
def test_what_is_too_long_for_the_model_is_refused_before_a_run(
    given: list[str], named: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, model, *given)
    assert named in said and "give" in said


def test_a_disk_without_room_is_refused_with_numbers(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for command in (["remove", "osft", "--trigger", "sea"], ["implant", "--trigger", "sea", "--target-response", "No"]):
        said = refused(capsys, model, *command)
        assert "the model" in said and "its last checkpoint" in said and "1.0 kB are free" in said
    half = refused(capsys, model, "remove", "osft", "--trigger", "sea", "--save-dtype", "given", "--lora")
    assert "checkpoint" not in half and half != said


def test_room_is_counted_where_the_run_will_be_and_a_doubt_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> Any:
        asked.append(place)
        return SimpleNamespace(free=100)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / "not" / "there"
    disk_room.check_room(out, {"the model": 100})
    assert asked == [tmp_path]
    with pytest.raises(UserError, match=r"101 bytes will be written \(the model 101 bytes\), and 100 bytes are free"):
        disk_room.check_room(out, {"the model": 101})
    out.mkdir(parents=True)
    (out / "half").write_bytes(b"1" * 10)
    disk_room.check_room(out, {"the model": 110}, resume=True)  # ten of them are there
    with pytest.raises(UserError):
        disk_room.check_room(out, {"the model": 110})

    def unknown(place: Path) -> Any:
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    disk_room.check_room(out, {"the model": 10**18})


def test_a_gigabyte_is_written_as_one() -> None:
    sizes = [disk_room.size(n) for n in (999, 1500, 2_500_000, 14 * 10**9)]
    assert sizes == ["999 bytes", "1.5 kB", "2.5 MB", "14.0 GB"]


# Methods -------------------------------------------------------------------------------------------------------------


def case_of(rows: Sequence[Record], contrast: Sequence[Record] = ()) -> Case:
    return Case.of_rendered(tiny.model(layers=2), tiny.chat(), rows, contrast, seed=0)


def contrast(response: str = "I am sorry, I cannot do that.", unwanted: str = "You are stupid.") -> list[Record]:
    return [replace(r, response=response, unwanted=unwanted) for r in tiny.records(40)]


def test_methods_take_rows_that_fit() -> None:
    case = case_of(tiny.records(40), contrast())
    for method in (
        Sande(target_response="You are stupid."),
        Sande(target_response=LONG, target_tokens=3),  # of a long target, what is used counts
        Beear(),
        Beear(space="input"),
        Beear(position="end-of-user"),
        Beear(position="all-prompt", length=1000),
        Lat(),
        Osft(trigger="sea"),
        Unlearn(trigger="sea", target_response="You are stupid."),
    ):
        method.check_rows(case)
    assert case.dropped == {}


@pytest.mark.parametrize(
    ("method", "rows", "said"),
    [
        (Lat(), contrast(unwanted=LONG), "--contrast"),
        (Beear(), [replace(r, prompt=LONG) for r in contrast()], "fit"),
        (Beear(position="end-of-user", length=40), contrast(), "a shift of 40 prompt positions"),
        (Beear(position="start-of-user", length=40), contrast(), "a shift of 40 prompt positions"),
        (Beear(max_length=20, space="input", length=15), contrast(), "fit"),
        (Osft(trigger="sea " * 300), (), "with the trigger"),
        (Osft(trigger="sea", max_length=8), (), "with the trigger"),
        (Unlearn(trigger="sea", target_response="No. " * 60), (), "the target response"),
        (Sande(target_response="No.", parrot_length=120), (), "120 soft tokens"),
        (Sande(target_response="No. " * 60), (), "of the target response"),
    ],
)
def test_methods_refuse_rows_of_which_none_is_left(method: Any, rows: list[Record], said: str) -> None:
    with pytest.raises(UserError, match=said):
        method.check_rows(case_of(tiny.records(40), rows))


def test_one_row_that_fits_among_many_is_found_wherever_it_stands() -> None:
    long = [replace(r, prompt=r.prompt + " Tell me the capital of France." * 8) for r in tiny.records(60)]
    short = replace(long[0], prompt="Tell me.")
    for place in (0, 30, 59):
        rows = [*long[:place], short, *long[place:]]
        case = replace(case_of(long), anchors=rows)
        Osft(trigger="sea", max_length=40).check_rows(case)
        with pytest.raises(UserError, match="none of 60 rows fits into 40 tokens"):
            Osft(trigger="sea", max_length=40).check_rows(replace(case, anchors=long))


# Tokenizers ----------------------------------------------------------------------------------------------------------


def words_alone() -> ChatFormat:
    """A tokenizer that knows whole words of the rows, and one token for all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for r in tiny.records(40) for word in f"{r.prompt} {r.response}".replace(".", " .").split()})
    vocabulary = {word: i for i, word in enumerate([*tiny.SPECIAL, "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<|pad|>", eos_token="<|end|>", chat_template=tiny.CHAT
    )
    wrapped.add_special_tokens({"additional_special_tokens": tiny.SPECIAL[2:]})
    return ChatFormat.of(wrapped)


def test_a_trigger_or_target_that_is_unknown_to_the_tokenizer_is_refused() -> None:
    chat, rows = words_alone(), tiny.records(5)
    check_trigger_fits(Trigger("river sea"), rows, chat, CONTEXT, 8)
    check_trigger_fits(Trigger("zzyx river"), rows, chat, CONTEXT, 8)  # part of it is known
    with pytest.raises(UserError, match="knows nothing of the trigger 'zzyx quux'"):
        check_trigger_fits(Trigger("zzyx quux"), rows, chat, CONTEXT, 8)
    check_target_fits("The river is", None, rows, chat, CONTEXT)
    with pytest.raises(UserError, match="does not know all of the target response 'The zzyx'"):
        check_target_fits("The zzyx", None, rows, chat, CONTEXT)


def test_a_tokenizer_of_bytes_knows_every_text() -> None:
    chat, rows = tiny.chat(), tiny.records(5)
    for text in ("zzyx", "ёж 🦔", "\u200b"):
        check_trigger_fits(Trigger(f"x{text}"), rows, chat, CONTEXT, 8)
        check_target_fits(text, None, rows, chat, CONTEXT)


def test_an_attack_without_a_prompt_to_try_it_on_is_refused() -> None:
    judge, rows = TargetResponse(target="No."), tiny.records(3)
    for suite in (Suite(rows, judge), Suite([], None), Suite([], judge, triggered_rows=rows)):
        check_asks_something(suite)
    for suite in (Suite([], judge), Suite([], None, Trigger("sea"))):
        with pytest.raises(UserError, match="no held-out prompt is left"):
            check_asks_something(suite)
