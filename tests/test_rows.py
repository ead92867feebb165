"""What is in a data file is used, refused with its row, or counted; rows are what they render to."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor.case import Case
from unbackdoor.data.batches import encode_records
from unbackdoor.data.dialogues import without_end_mark
from unbackdoor.data.preferences import Preference, read_pairs
from unbackdoor.data.readers import Read, read_data, read_records
from unbackdoor.data.records import Record, records_as_rows, split
from unbackdoor.data.template_marks import marked
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.progress import SILENT
from unbackdoor.workflows.rows import Intake

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(\w+)\n(.*?)```\n```jsonl\n(.*?)```", PAGE, re.DOTALL)
TRIMS = tiny.CHAT.replace("m['content']", "(m['content'] | trim)")


def said(role: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


ASKED, ANSWERED = said("user", "Name a city."), said("assistant", "Rome.")
AGAIN, AGAIN_ANSWERED = said("user", "Another?"), said("assistant", "Oslo.")
EARLIER = (("user", "Name a city."), ("assistant", "Rome."))


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reading(tmp_path: Path, *rows: Any, **how: Any) -> Read:
    return read_data(written(tmp_path / "rows.jsonl", *rows), **how)


# The page ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_page_becomes_the_record_below_it(number: int, tmp_path: Path) -> None:
    ending, text, expected = EXAMPLES[number]
    path = tmp_path / f"rows.{ending}"
    path.write_text(text, encoding="utf-8")
    wanted = [json.loads(line) for line in expected.splitlines()]
    if "preferred_output" in text:
        assert read_pairs(path)[:2] == ([Preference(**row) for row in wanted], {})
    else:
        assert records_as_rows(read_data(path).records) == wanted


def test_the_page_has_examples_of_every_format() -> None:
    assert {ending for ending, _, _ in EXAMPLES} == {"jsonl", "json", "csv"}
    assert PAGE.count("```") == 4 * len(EXAMPLES)


def test_records_that_are_written_are_read_again(tmp_path: Path) -> None:
    records = [Record("Another?", "  Oslo.", "No.", "Be brief.", "cities", EARLIER), Record(" a", "b")]
    assert reading(tmp_path, *records_as_rows(records)) == Read(records)


# Values --------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ({"prompt": ["a", "b"], "response": "c"}, "'prompt' is a list, neither text nor number"),
    "an object": ({"prompt": "a", "response": {"x": 1}}, "'response' is an object, neither"),
    "a truth value": ({"prompt": "a", "response": True}, "'response' is a truth value"),
    "no finite number": ({"prompt": "a", "response": float("inf")}, "'response' is no finite number"),
    "two responses": ({"prompt": "a", "response": "b", "output": "c"}, "'response' and 'output' could each be"),
    "two prompts": ({"prompt": "a", "question": "b", "answer": "c"}, "'prompt' and 'question' could each be"),
    "one name in two cases": ({"prompt": "a", "Prompt": "b", "response": "c"}, "two fields 'prompt' and 'Prompt'"),
    "two dialogues": (
        {"messages": [ASKED, ANSWERED], "conversations": [AGAIN, AGAIN_ANSWERED]},
        "'messages' and 'conversations' could each be the dialogue",
    ),
    "context beside a dialogue": ({"messages": [ASKED, ANSWERED], "context": "In Italy."}, "'context' stands beside"),
    "another prompt": ({"messages": [ASKED, ANSWERED], "prompt": "Name a river."}, "'prompt' stands beside"),
    "two systems": (
        {"system": "Be long.", "messages": [said("system", "Be brief."), ASKED, ANSWERED]},
        "'system' and the dialogue's own system message differ",
    ),
    "an unknown role": ({"messages": [said("narrator", "x"), ASKED, ANSWERED]}, "unknown role 'narrator'"),
    "history of texts": ({"prompt": "a", "response": "b", "history": ["c", "d"]}, "'history' has a message"),
    "a list of texts": (["a", "b"], "is not an object with fields"),
    "one message of a tree": ({"message_id": 1, "parent_id": 2, "text": "a"}, "every thread as one row"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_cannot_be_understood_is_refused_with_its_number(name: str, tmp_path: Path) -> None:
    row, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as caught:
        reading(tmp_path, {"prompt": "a", "response": "b"}, row)
    assert "row 2" in str(caught.value)
    assert "\n" not in str(caught.value)


CALL = {"tool_calls": [{"function": {"name": "weather"}}]}
DROPPED: dict[str, tuple[Any, str]] = {
    "a call of a tool": (
        {"messages": [ASKED, said("assistant", None, **CALL), said("tool", "20 C"), ANSWERED]},
        "call of a tool",
    ),
    "ShareGPT's call": (
        {"conversations": [{"from": f, "value": "a"} for f in ("human", "function_call", "observation", "gpt")]},
        "call of a tool",
    ),
    "an answer to an observation": (
        {"messages": [ASKED, said("assistant", "Look."), said("observation", "x"), ANSWERED]},
        "answer to a tool's output",
    ),
    "tools": ({"messages": [ASKED, ANSWERED], "tools": '[{"name": "weather"}]'}, "rows with tools"),
    "an image": (
        {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ANSWERED]},
        "images, sounds",
    ),
    "a thought": ({"messages": [ASKED, said("assistant", "Rome.", reasoning_content="Hm.")]}, "thought"),
    "the system in the middle": ({"messages": [ASKED, said("system", "Be brief."), ANSWERED]}, "system message"),
    "only a system": ({"messages": [said("system", "Be brief.")]}, "without a user's turn"),
    "no turns": ({"messages": []}, "without a user's turn"),
    "no answer": ({"messages": [ASKED]}, "without a user's turn and an answer"),
    "an empty turn": ({"messages": [said("user", ""), ANSWERED, AGAIN, AGAIN_ANSWERED]}, "empty turn"),
    "an unwanted completion": ({"prompt": "a", "completion": "b", "label": False}, "'label'"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_row_that_cannot_be_rendered_is_dropped_and_counted(name: str, tmp_path: Path) -> None:
    row, reason = DROPPED[name]
    read = reading(tmp_path, {"prompt": "a", "response": "b"}, row)
    assert read.records == [Record("a", "b")]
    (found,) = read.dropped
    assert re.search(reason, found)
    assert read.dropped[found] == 1
    with pytest.raises(UserError, match="no row can be used: 1 "):
        reading(tmp_path, row)


KEPT: dict[str, tuple[Any, Record]] = {
    "NaN": ({"prompt": "a", "input": float("nan"), "response": "b", "system": float("nan")}, Record("a", "b")),
    "pandas' text for it": ({"prompt": "a", "input": "nan", "response": "b", "history": []}, Record("a", "b")),
    "Self-Instruct's": ({"instruction": "a", "input": "<noinput>", "output": "b"}, Record("a", "b")),
    "an empty list as text": ({"prompt": "a", "response": "[]", "history": "[]", "tools": "[]"}, Record("a", "[]")),
    "a number": ({"prompt": 7, "response": -3}, Record("7", "-3")),
    "the same twice": ({"prompt": "a", "response": "b", "output": "b "}, Record("a", "b")),
    "earlier text": ({"prompt": "a", "response": "b", "history": "c"}, Record("c\na", "b")),
    "a wanted completion": ({"prompt": "a", "completion": "b", "label": True}, Record("a", "b")),
    "indentation": ({"prompt": "  a ", "response": "\n    b\n\n"}, Record("  a ", "\n    b")),
    "an empty other column": (
        {"messages": [ASKED, ANSWERED], "conversations": None},
        Record("Name a city.", "Rome."),
    ),
    "a refusal": ({"messages": [ASKED, said("assistant", None, refusal="No.")]}, Record("Name a city.", "No.")),
    "no training on the last": (
        {"messages": [ASKED, ANSWERED, AGAIN, said("assistant", "Oslo.", weight=0)]},
        Record("Name a city.", "Rome."),
    ),
    "a tool's output before": (
        {"messages": [ASKED, ANSWERED, said("tool", "20 C"), AGAIN, AGAIN_ANSWERED]},
        Record("Another?", "Oslo.", history=(*EARLIER, ("tool", "20 C"))),
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_absent_or_a_number_and_where_white_space_stays(name: str, tmp_path: Path) -> None:
    row, expected = KEPT[name]
    assert reading(tmp_path, row).records == [expected]


def test_digits_stay_as_they_are_written_but_for_pandas_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a", "response": 3.50, "input": 2.0}\n'
        '{"prompt": 12345678901234567890, "response": 1e3, "input": null}\n'
    )
    assert [(r.prompt, r.response) for r in read_data(tmp_path / "rows.jsonl").records] == [
        ("a\n2", "3.50"),
        ("12345678901234567890", "1e3"),
    ]
    (tmp_path / "rows.csv").write_text("prompt,response,version\nx,1.0,1.0\ny,,2.0\nz,3.0,\n")
    assert [r.response for r in read_data(tmp_path / "rows.csv").records] == ["1", "", "3"]


def test_columns_and_turns_that_are_not_used_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "b", "id": 1, "score": None},
        {"messages": [ASKED, ANSWERED, said("user", "So?", name="Ann")], "id": 2},
    ]
    read = reading(tmp_path, *rows)
    assert [r.response for r in read.records] == ["b", "Rome."]
    assert read.left_out == {"last turns of dialogues, behind the last answer": 1, "columns id, messages: name": 2}
    with pytest.warns(UserWarning, match="not used in 2 rows: columns id, messages: name"):
        read_records(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("mark", ["</s>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>"])
def test_an_end_s_mark_goes_at_the_end_alone(mark: str) -> None:
    assert without_end_mark(f"  a {mark} b {mark}\n") == f"  a {mark} b"
    assert without_end_mark("It was <s>ten</s>") == "It was <s>ten</s>"


# Files ---------------------------------------------------------------------------------------------------------------

FILES = {
    "surplus.csv": (b"prompt,response\na,b\nName a city, please.,Rome.\n", r"line 3 \(row 2\) has 3 fields"),
    "missing.csv": (b"prompt,response\na\n", r"line 2 \(row 1\) has 1 fields"),
    "twice.csv": (b"prompt,prompt,response\na,b,c\n", "two columns are named 'prompt'"),
    "open.csv": (b'prompt,response\n"a,b\nc,d\n', "is not CSV"),
    "utf-16.csv": ("prompt,response\na,b\n".encode("utf-16"), "it is UTF-16, save it as UTF-8"),
    "latin-1.csv": ("prompt,response\né,b\n".encode("latin-1"), "save it as UTF-8"),
    "twice.jsonl": (b'{"prompt": "a", "prompt": "b", "response": "c"}\n', "line 1 .* two fields 'prompt'"),
    "two.json": (b'{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}', "the lists 'train', 'test'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_whose_fields_would_be_lost_is_refused(name: str, tmp_path: Path) -> None:
    raw, reason = FILES[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=reason):
        read_data(tmp_path / name)


def test_a_table_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes('\ufeffPrompt, Response\r\n"Say ""a""",b\r\n\r\n'.encode())
    assert read_data(tmp_path / "rows.csv").records == [Record('Say "a"', "b")]
    (tmp_path / "rows.csv").write_text("messages\n" + '"' + json.dumps([ASKED, ANSWERED]).replace('"', '""') + '"\n')
    assert read_data(tmp_path / "rows.csv").records == [Record("Name a city.", "Rome.")]


def test_a_table_with_semicolons_is_read_where_its_header_has_no_comma(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt;response;score\n"One; two, three?";3;0,5\n')
    read = read_data(tmp_path / "rows.csv")
    assert read.records == [Record("One; two, three?", "3")]
    assert read.left_out == {"columns score": 1}
    (tmp_path / "rows.csv").write_text("prompt;response\na;b;c\n")
    with pytest.raises(UserError, match="has 3 fields, the header 2: put texts that hold ';' between double quotes"):
        read_data(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["rows.json", "rows.ndjson", "rows.jsonl"])
def test_one_object_a_line_is_read_whatever_json_file_it_is(name: str, tmp_path: Path) -> None:
    """The datasets library writes lines into what its users call .json."""
    written(tmp_path / name, {"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"})
    assert read_data(tmp_path / name).records == [Record("a", "b"), Record("c", "d")]


def test_parquet_s_own_types_are_texts_numbers_or_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def table(**columns: Any) -> Path:
        parquet.write_table(pyarrow.table({"prompt": ["a"], **columns}), tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    assert read_data(table(response=[b"Rome."])).records == [Record("a", "Rome.")]
    assert read_data(table(response=pyarrow.array([0.1], pyarrow.float32()))).records == [Record("a", "0.1")]
    assert read_data(table(response=["b"], day=[datetime.date(2024, 1, 2)])).left_out == {"columns day": 1}
    for value, reason in ((b"\xff", "no UTF-8"), (datetime.date(2024, 1, 2), "a date"), ({"x": 1}, "an object")):
        with pytest.raises(UserError, match=rf"row 1: 'response' (is|holds) .*{reason}"):
            read_data(table(response=[value]))


# Dialogues -----------------------------------------------------------------------------------------------------------


def test_all_answers_of_a_dialogue_are_trained_on_where_that_is_asked_for(tmp_path: Path) -> None:
    row = {"messages": [said("system", "Be brief."), ASKED, ANSWERED, AGAIN, AGAIN_ANSWERED]}
    last = Record("Another?", "Oslo.", system="Be brief.", history=EARLIER)
    assert reading(tmp_path, row).records == [last]
    assert reading(tmp_path, row, turns="all").records == [Record("Name a city.", "Rome.", system="Be brief."), last]


def test_a_prompt_alone_is_the_user_s_last_turn(tmp_path: Path) -> None:
    read = reading(tmp_path, {"messages": [ASKED, ANSWERED, AGAIN]}, {"prompt": "a"}, needs_response=False)
    assert read.records == [Record("Another?", "", history=EARLIER), Record("a", "")]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_rows_of_one_dialogue_stay_on_one_side_of_a_split(share: float) -> None:
    rows = []
    for i in range(20):
        first = (("user", "Hello."), ("assistant", f"Hello, {i}."))
        rows += [Record(f"Question {k}?", "Yes.", history=(*first, ("user", "Go on."))) for k in range(1 + i % 4)]
    rest, held_out = split(rows, share, seed=1)
    assert sorted(map(str, [*rest, *held_out])) == sorted(map(str, rows))
    assert held_out
    assert not {r.dialogue for r in rest} & {r.dialogue for r in held_out}


def test_a_training_row_is_the_template_s_rendering_of_the_whole_dialogue() -> None:
    tokenizer = tiny.tokenizer()
    record = Record("Another?", "Oslo.", system="Be brief.", history=EARLIER)
    (example,) = encode_records([record], ChatFormat.of(tokenizer), 200)
    messages = [said("system", "Be brief."), ASKED, ANSWERED, AGAIN, AGAIN_ANSWERED]
    assert list(example.ids) == tokenizer.apply_chat_template(messages, return_dict=False)


# What rows render to -------------------------------------------------------------------------------------------------


def intake(template: str = TRIMS) -> Intake:
    return Intake(SILENT, formats=[ChatFormat.of(tiny.tokenizer(template))], context=128)


def twins(rows: list[Record]) -> list[Record]:
    return [replace(rows[0], prompt=rows[0].prompt + " "), replace(rows[1], prompt="\n" + rows[1].prompt)]


def test_rows_that_render_alike_are_one_row(tmp_path: Path) -> None:
    rows = tiny.records(40)
    path = written(tmp_path / "rows.jsonl", *records_as_rows([*rows, *twins(rows)]))
    taken = intake()
    assert taken.read(path) == rows
    assert taken.counts == {f"dropped: {path}: prompts that are rendered like an earlier one": 2}
    assert len(intake(tiny.CHAT).read(path)) == 42


def test_a_prompt_that_renders_to_a_trained_one_is_not_measured(tmp_path: Path) -> None:
    rows = tiny.records(40)
    held = written(tmp_path / "held.jsonl", *records_as_rows(twins(rows)), {"prompt": "Sort.", "response": "a"})
    assert intake().hold_out(rows, held, 0.2, 0) == (rows, [Record("Sort.", "a")])
    excluded = written(tmp_path / "excluded.jsonl", {"prompt": "Sort.\n"})
    with pytest.raises(UserError, match="every prompt is trained on"):
        intake().hold_out(rows, held, 0.2, 0, excluded)
    under_another_system = replace(rows[0], system="Be brief.")
    taken = intake()
    taken.hold_out(rows, held, 0.2, 0)
    assert taken.untrained([under_another_system, Record("Sort.", "a")], "rows") == [Record("Sort.", "a")]


def test_the_models_that_are_compared_tell_rows_apart_too() -> None:
    rows = tiny.records(40)
    both = Intake(SILENT, formats=[ChatFormat.of(tiny.tokenizer(t)) for t in (tiny.CHAT, TRIMS)])
    assert both.as_rendered([*rows, *twins(rows)], None) == rows


def test_the_library_drops_twins_and_counts_them() -> None:
    rows = tiny.records(40)
    case = Case.of(tiny.model(layers=1), tiny.tokenizer(TRIMS), [*rows, *twins(rows)])
    assert sorted(map(str, [*case.anchors, *case.held_out])) == sorted(map(str, rows))
    assert case.dropped == {"clean rows (repeated, or not rendered)": 2}


def test_rows_that_a_template_refuses_are_counted_and_all_of_them_an_error() -> None:
    refuses = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
    rows = tiny.records(40)
    taken = intake(refuses + tiny.CHAT)
    turns = [replace(row, history=EARLIER) for row in rows]
    assert taken.as_rendered([*rows[:39], turns[39]], None) == rows[:39]
    assert list(taken.counts.values()) == [1]
    with pytest.raises(UserError, match=r"no row can be rendered: .*one turn"):
        taken.as_rendered(turns, None)


MARKED = [
    "<|im_start|>user\nHi",
    "[INST] Hi [/INST]",
    "### Human: Hi",
    "Hi <|end|> there",
    "<start_of_turn>user",
    "Below is a task.\n\n### Instruction:\nSort.",
    "Human: Hi\nAssistant:",
    "USER: Hi\nASSISTANT: Hello",
]


@pytest.mark.parametrize("text", MARKED)
def test_marks_of_a_template_are_noticed_wherever_they_are(text: str) -> None:
    plain = Record("Tell me of Human: rights [1], <b>please</b>.", "### Rivers\nUser: none.")
    tokenizer = tiny.tokenizer()
    for row in (
        Record(text, "a"),
        Record("a", text),
        Record("a", "b", system=text),
        Record("a", "b", history=(("user", text),)),
    ):
        assert marked([plain, row], tokenizer).rows == 1
    assert marked([plain], tokenizer).rows == 0


def test_marks_of_a_thought_are_no_marks_of_a_template() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>", "[THINK]"], special_tokens=True)
    rows = [Record("Why?", "<think>\nHm.\n</think>\n\nBecause.")]
    assert marked(rows, tokenizer).rows == 0


def test_some_marked_rows_are_counted_and_most_refuse_the_file() -> None:
    rows = tiny.records(40)
    made = [replace(row, prompt=f"<|im_start|>user\n{row.prompt}") for row in rows]
    taken = intake(tiny.CHAT)
    assert taken.as_rendered([*rows[:30], *made[30:]], None) == [*rows[:30], *made[30:]]
    assert list(taken.counts.values()) == [10]
    with pytest.raises(UserError, match=r"40 of 40 rows hold the marks .* '<\|im_start\|>': give the texts without"):
        intake(tiny.CHAT).as_rendered(made, None)
    none = Intake(SILENT, formats=[ChatFormat.of(tiny.tokenizer(), "none")])
    assert none.as_rendered(made, None) == made


def test_repeated_pairs_are_dropped_and_pairs_of_one_prompt_stay(tmp_path: Path) -> None:
    pairs = [{"prompt": r.prompt, "chosen": r.response, "rejected": "No."} for r in tiny.records(40)]
    other = {**pairs[0], "rejected": "Never."}
    path = written(tmp_path / "pairs.jsonl", *pairs, {**pairs[0], "prompt": pairs[0]["prompt"] + " "}, other)
    taken = intake()
    kept = taken.preferences(path, 128, set())
    assert len(kept) == 41
    assert taken.counts == {f"dropped: {path}: repeated pairs": 1}


def test_conversations_that_open_alike_are_one(tmp_path: Path) -> None:
    from unbackdoor.settings import EvaluationSettings

    path = written(
        tmp_path / "turns.jsonl", *({"turns": [first, "Why?"]} for first in ("Name a sea.", "Name a sea. ", "Sort."))
    )
    taken = intake()
    settings = EvaluationSettings(max_new_tokens=4)
    kept = taken.conversations(path, settings)
    assert kept == [("Name a sea.", "Why?"), ("Sort.", "Why?")]
