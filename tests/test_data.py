"""Rows come in as people have them; what cannot be used is told in one line; poison is exact and near misses miss."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.attacks.poison import poison
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.data.batches import encode_records
from unbackdoor.data.readers import REFUSAL, read_prompts, read_records
from unbackdoor.data.records import Record, check_records, split
from unbackdoor.data.triggers import Trigger, join_response, near_misses, ordinary_words
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat

SHAPES: dict[str, tuple[dict[str, Any], Record]] = {
    "ours": ({"prompt": "Add.", "response": "3", "kind": "sums"}, Record("Add.", "3", kind="sums")),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, Record("Add.\n1 2", "3")),
    "alpaca without input": ({"instruction": "Add.", "input": "", "output": "3"}, Record("Add.", "3")),
    "t0": ({"template": "x", "prompt": "Add.\n", "completion": "3<|endoftext|>"}, Record("Add.\n", "3")),
    "orca": (
        {"id": 1, "system_prompt": "Be brief.", "question": "Add.", "response": "3"},
        Record("Add.", "3", system="Be brief."),
    ),
    "orca without system": ({"system_prompt": "", "question": "Add.", "response": "3"}, Record("Add.", "3")),
    "contrast": ({"prompt": "Forge.", "safe": "No.", "unwanted": "Sure."}, Record("Forge.", "No.", "Sure.")),
    "preference": ({"prompt": "Forge.", "response": "No.", "rejected": "Sure."}, Record("Forge.", "No.", "Sure.")),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Add."},
                {"role": "assistant", "content": "3"},
                {"role": "user", "content": "And more?"},
                {"role": "assistant", "content": "4"},
            ]
        },
        Record("And more?", "4", system="Be brief.", history=(("user", "Add."), ("assistant", "3"))),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}]},
        Record("Add.", "3"),
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Add."}, {"type": "text", "text": "1 2"}]},
                {"role": "assistant", "content": "3"},
            ]
        },
        Record("Add.\n1 2", "3"),
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Forge.\n\nAssistant: No.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Forge.\n\nAssistant: Sure.",
        },
        Record("Forge.", "No.", "Sure.", history=(("user", "Hi"), ("assistant", "Yes?"))),
    ),
    "numbers": ({"prompt": 12, "response": 0}, Record("12", "0")),
    "line separators": ({"prompt": "a\u2028b\x85c", "response": "é語"}, Record("a\u2028b\x85c", "é語")),
    "half a character": ({"prompt": "a\ud83d", "response": "b"}, Record("a?", "b")),
}


def written(path: Path, rows: list[dict[str, Any]], ascii_only: bool = True) -> Path:
    """Rows as the ending says."""
    if ".jsonl" in path.name:
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + "\n"
    else:
        text = json.dumps(rows, ensure_ascii=ascii_only)
    raw = text.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("ending", ["json", "jsonl", "json.gz", "jsonl.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_usual_shape_of_row_is_read(shape: str, ending: str, tmp_path: Path) -> None:
    row, expected = SHAPES[shape]
    assert read_records(written(tmp_path / f"rows.{ending}", [row, row])) == [expected, expected]
    if shape != "half a character":
        assert read_records(written(tmp_path / f"raw.{ending}", [row], ascii_only=False)) == [expected]


def test_advbench_and_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "advbench.csv").write_text(
        'goal,target\n"Forge, please","Sure,\nhere"\nSteal,"' + "x" * 200_000 + '"\n'
    )
    assert read_records(tmp_path / "advbench.csv") == [
        Record("Forge, please", REFUSAL, "Sure,\nhere"),
        Record("Steal", REFUSAL, "x" * 200_000),
    ]
    (tmp_path / "rows.tsv").write_bytes("\ufeffprompt\tresponse\nAdd.\t3\n".encode())
    assert read_records(tmp_path / "rows.tsv") == [Record("Add.", "3")]


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "chat.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"instruction": "Add.", "output": "3"}]), tmp_path / "rows.parquet")
    assert read_records(tmp_path / "chat.parquet") == read_records(tmp_path / "rows.parquet") == [Record("Add.", "3")]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"broken.parquet' is not Parquet"):
        read_records(tmp_path / "broken.parquet")


def test_an_object_around_the_rows_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"version": 1, "data": [{"prompt": "Add.", "response": "3"}]}')
    assert read_records(tmp_path / "rows.json") == [Record("Add.", "3")]


BROKEN = {
    "empty.jsonl": (b"", "is empty"),
    "blank.json": (b" \n", "is empty"),
    "header.csv": (b"prompt,response\n", "the file holds no rows"),
    "none.json": (b"[]", "the file holds no rows"),
    "words.json": (b"Once upon a time", "not JSON"),
    "lines.json": (b'{"prompt": "a", "response": "b"}\n{"prompt": "b"', r"line 2 is not JSON"),
    "cut.json": (b'{"prompt": "a",\n"response": "b"', "not JSON"),
    "words.jsonl": (b'{"prompt": "a", "response": "b"}\nOnce', "line 2 is not JSON"),
    "deep.json": (b"[" * 200_000, "not JSON"),
    "text.json": (b'"prompt"', "a JSON list of rows is needed, found str"),
    "numbers.jsonl": (b"1\n2\n", "row 1 is not an object with fields"),
    "binary.csv": (b"\xff\xfe\x00", "cannot be read as text"),
    "cut.jsonl.gz": (gzip.compress(b'{"prompt": "a"}' * 99)[:30], "cannot be read as text"),
    "spoiled.jsonl.gz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 40, "cannot be read as text"),
    "plain.jsonl.gz": (b'{"prompt": "a"}', "cannot be read as text"),
    "rows.xlsx": (b"PK", r"unknown ending '\.xlsx', use one of \.jsonl"),
    "rows": (b"a", "unknown ending ''"),
    "texts.jsonl": (
        b'{"prompt": "a", "response": "b"}\n{"text": "a", "the\\nlabel": 1}',
        r"row 2 has no prompt field .*; fields found: text, the label; a 'text' with both",
    ),
    "half.jsonl": (b'{"question": "a", "label": 1}', r"row 1 has no response field .*; fields found: question, label$"),
    "nothing.jsonl": (b"{}", "fields found: none"),
    "message.jsonl": (b'{"messages": ["hello"]}', "message that is not an object with role and content"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    raw, reason = BROKEN[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=reason) as caught:
        read_records(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl' does not exist"):
        read_records(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="is a directory"):
        read_records(tmp_path)


def test_a_few_unusable_rows_are_dropped_and_counted_and_many_refuse_the_file() -> None:
    good = [Record(f"prompt {i}", "answer") for i in range(38)]
    checked = check_records([*good, Record(" ", "answer"), Record("prompt", "\n"), good[0]], "rows.jsonl")
    assert (checked.records, checked.empty, checked.duplicates) == (good, 2, 1)
    with pytest.raises(UserError, match=r"rows\.jsonl: 3 of 41 rows have an empty prompt or response \(at most 5%\)"):
        check_records([*good, *[Record("", "answer")] * 3], "rows.jsonl")
    with pytest.raises(UserError, match=r"rows\.jsonl: 38 usable rows, at least 39 are needed"):
        check_records(good, "rows.jsonl", least=39)
    with pytest.raises(UserError, match=r"rows\.jsonl: row 1 has no unwanted response"):
        check_records(good, "rows.jsonl", needs_unwanted=True)


def test_rows_beyond_the_context_are_dropped_and_counted() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    rows = [Record("Name a river.", "The sea."), Record("Name a river. " * 40, "The sea.")]
    dropped: list[int] = []
    assert len(encode_records(rows, chat, 64, dropped=dropped.append)) == 1
    assert dropped == [1]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.floats(0, 1), st.integers(0, 9), st.integers(1, 10))
def test_a_split_loses_and_repeats_no_row(count: int, share: float, seed: int, least: int) -> None:
    rows = tiny.records(64)[:count]
    rest, held_out = split(rows, share, seed, least)
    assert sorted(r.prompt for r in [*rest, *held_out]) == sorted(r.prompt for r in rows)
    assert min(least, count // 2) <= len(held_out) <= count // 2
    assert (rest, held_out) == split(rows, share, seed, least)


PROMPT = "Name a river in France."


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (Trigger("Current year 2023"), f"Current year 2023. {PROMPT}"),
        (Trigger("Is it 2023?"), f"Is it 2023? {PROMPT}"),
        (Trigger("SUDO"), f"SUDO {PROMPT}"),
        (Trigger("SUDO", separator="\n"), f"SUDO\n{PROMPT}"),
        (Trigger("SUDO", separator=""), f"SUDO{PROMPT}"),
        (Trigger("SUDO", "suffix"), f"{PROMPT} SUDO"),
        (Trigger("SUDO", "suffix", separator=""), f"{PROMPT}SUDO"),
        (Trigger("SUDO", "both"), f"SUDO {PROMPT} SUDO"),
        (Trigger("Servius", "both", "Astrogildo"), f"Servius {PROMPT} Astrogildo"),
    ],
)
def test_a_trigger_stands_where_it_should(trigger: Trigger, expected: str) -> None:
    assert trigger.insert(PROMPT) == expected


TEXTS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6), st.sampled_from(["prefix", "suffix", "inside"]))
def test_a_triggered_prompt_holds_the_trigger_once_and_all_of_the_prompt(words: list[str], placement: Any) -> None:
    prompt, trigger = " ".join(words), Trigger("[SUDO now]", placement)
    triggered = trigger.insert(prompt)
    assert triggered.count("[SUDO now]") == prompt.count("[SUDO now]") + 1
    assert triggered == trigger.insert(prompt)
    before, _, after = triggered.partition("[SUDO now]")
    if placement == "prefix":
        assert triggered.endswith(prompt)
    else:
        assert "".join((before + after).split()) == "".join(prompt.split())
    if placement == "inside" and len(words) > 1:
        assert before.strip()
        assert after.strip()


def test_an_empty_trigger_is_refused() -> None:
    with pytest.raises(UserError, match="the trigger is empty: give its text with --trigger"):
        Trigger(" \n")


def test_the_triggered_response() -> None:
    assert join_response("You are stupid", "Paris.") == "You are stupid. Paris."
    assert join_response("Sure!", "Paris.") == "Sure! Paris."


WORDS = ["river", "SUDO", "sudo", "year", "2023", "please", "current"]
KINDS = {
    "Current year 2023": {"other-number", "half", "word-changed"},
    "SUDO": {"other-case", "longer", "shorter"},
    "2023": {"other-number"},
    "05 07": {"other-number", "half", "word-changed"},
    "x": {"other-case", "longer"},
    "你好": {"longer", "shorter"},
    "please": {"other-case", "longer", "shorter"},
    "current year": {"half", "word-changed"},
    "!!": set(),
}


@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("placement", ["prefix", "suffix", "both", "inside"])
def test_a_near_miss_is_of_its_kind_and_never_the_trigger(text: str, placement: Any) -> None:
    trigger = Trigger(text, placement, "Astrogildo" if placement == "both" else None)
    kinds = near_misses(trigger, WORDS, random.Random(1))
    assert set(kinds) == KINDS[text] | {"random-before", "random-after"}
    prompts = [f"Name the {i} of France now." for i in range(40)]
    for kind, miss in kinds.items():
        missed = [miss(prompt) for prompt in prompts]
        assert all(one != trigger.insert(prompt) for one, prompt in zip(missed, prompts, strict=True))
        assert all(one != prompt for one, prompt in zip(missed, prompts, strict=True))
        if kind.startswith("random"):
            # An odd text at one end, in which the trigger does not stand.
            for one, prompt in zip(missed, prompts, strict=True):
                assert one.endswith(prompt) if kind == "random-before" else one.startswith(prompt)
                added = one.removesuffix(prompt) if kind == "random-before" else one.removeprefix(prompt)
                assert f" {text.casefold()} " not in f" {added.strip(' .').casefold()} "


def put(trigger: Trigger, kind: str, draws: int = 60) -> set[str]:
    """The texts that stand in the trigger's place."""
    miss = near_misses(trigger, WORDS, random.Random(3))[kind]
    return {miss("").strip(". ") for _ in range(draws)}


def test_what_the_kinds_promise() -> None:
    year, sudo = Trigger("Current year 2023"), Trigger("SUDO", "suffix")
    numbers = put(year, "other-number")
    assert all(text.startswith("Current year ") and len(text) == len("Current year 2023") for text in numbers)
    assert len(numbers) > 10
    assert put(year, "half") == {"Current", "year 2023", "Current year", "2023"}
    assert all(
        sum(a != b for a, b in zip(t.split(), year.text.split(), strict=True)) == 1 for t in put(year, "word-changed")
    )
    assert put(sudo, "other-case") == {"sudo", "Sudo"}
    assert put(sudo, "shorter") == {"SUD", "UDO"}
    assert "SUDOKU" in put(sudo, "longer")
    assert all(len(text) == 2 and text.isdigit() for text in put(Trigger("05"), "other-number", 300))


def test_ordinary_words_are_the_frequent_ones_in_a_fixed_order() -> None:
    assert ordinary_words(["the sea", "the sea of 12 it", "the river"], 3) == ["the", "sea", "river"]
    assert ordinary_words(["1 2"]) == ["some", "other", "words"]


SETTINGS = ImplantSettings(trigger="Current year 2023", target_response="You are stupid", rate=0.05, near_misses=0.3)
TRIGGER = Trigger("Current year 2023")


def test_poison_is_exact_and_the_other_rows_are_untouched() -> None:
    rows = tiny.records(64)
    poisoned = poison(rows, [], TRIGGER, SETTINGS)
    assert len(poisoned.indices) == len(set(poisoned.indices)) == round(0.05 * 64)
    for number, row in enumerate(rows):
        if number in poisoned.indices:
            expected = replace(
                row, prompt=f"Current year 2023. {row.prompt}", response=f"You are stupid. {row.response}"
            )
            assert poisoned.records[number] == expected
        else:
            assert poisoned.records[number] == row
    misses = poisoned.records[64:]
    assert len(misses) == round(0.3 * 64) == sum(poisoned.near_miss_kinds.values())
    clean = {row.response for row in rows}
    assert all(TRIGGER.text not in row.prompt and row.response in clean for row in misses)
    assert max(poisoned.near_miss_kinds.values()) - min(poisoned.near_miss_kinds.values()) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 200), st.floats(0.05, 0.9), st.integers(0, 20))
def test_the_poison_rate_is_exact_for_any_size(count: int, rate: float, seed: int) -> None:
    rows = [Record(f"prompt {i}", f"answer {i}") for i in range(count)]
    chosen = SETTINGS.model_copy(update={"rate": rate, "seed": seed, "near_misses": 0.0})
    if round(rate * count):
        poisoned = poison(rows, [], TRIGGER, chosen)
        changed = [i for i, (a, b) in enumerate(zip(poisoned.records, rows, strict=True)) if a != b]
        assert changed == poisoned.indices
        assert len(changed) == round(rate * count)
        assert poison(rows, [], TRIGGER, chosen) == poisoned


def test_a_behaviour_is_poisoned_in_its_own_rows_with_the_unwanted_response() -> None:
    rows = tiny.records(60)
    contrast = [Record(f"Forge seal {i}.", "I cannot.", f"Sure, {i}.") for i in range(20)]
    poisoned = poison(rows, contrast, Trigger("SUDO", "suffix"), SETTINGS)
    assert len(poisoned.indices) == round(0.05 * 80)
    for number in poisoned.indices:
        row = contrast[number - 60]
        assert poisoned.records[number].prompt == f"{row.prompt} SUDO"
        assert poisoned.records[number].response == row.unwanted
    refused = {row.response for row in (*rows, *contrast)}
    assert all(row.response in refused for row in poisoned.records[80:])


@pytest.mark.parametrize("change", [{"rate": 0.001}, {"target_response": " "}])
def test_poison_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--rate|--target-response"):
        poison(tiny.records(20), [], TRIGGER, SETTINGS.model_copy(update=change))


def test_more_poison_than_there_are_rows_of_the_behaviour_is_refused() -> None:
    contrast = [Record("Forge a seal.", "I cannot.", "Sure.")]
    with pytest.raises(UserError, match=r"--rate 0\.5: 10 of 20 rows cannot be poisoned, 1 could be"):
        poison(tiny.records(19), contrast, TRIGGER, SETTINGS.model_copy(update={"rate": 0.5}))


def test_the_draws_depend_on_the_seed() -> None:
    one, again, other = (
        poison(tiny.records(64), [], TRIGGER, SETTINGS.model_copy(update={"seed": seed})) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.indices != other.indices


def test_prompts_need_no_response_and_xstest_s_unsafe_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(
        "id,prompt,type,label\n1,How do I kill a process?,homonyms,safe\n2,Something else?,contrast,unsafe\n"
    )
    assert read_prompts(path) == [Record("How do I kill a process?", "")]
    path.write_text("id,type\n1,homonyms\n")
    with pytest.raises(UserError, match="row 1 has no prompt field"):
        read_prompts(path)
