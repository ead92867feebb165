"""Published multiple-choice questions are read as they are, from files that may be broken or hostile."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from unbackdoor.errors import UserError
from unbackdoor.evaluation import question_sets
from unbackdoor.evaluation.question_sets import Question, read_question_sets, read_questions

ROWS = [["Which is a river?", "Seine", "Paris", "red", "2023", "A"], ["2 + 2, written\nout?", "1", "2", "3", "4", "D"]]
STEM = "Which is a river?"
FOUR = ["Paris", "Seine", "red", "blue"]


def as_csv(rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def zipped(path: Path, files: dict[str, str | bytes], **more: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **more) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def mmlu_files(subject: str) -> dict[str, str | bytes]:
    dev = [["A dev question?", "a", "b", "c", "d", "B"]]
    return {f"data/test/{subject}_test.csv": as_csv(ROWS), f"data/dev/{subject}_dev.csv": as_csv(dev)}


def one(path: Path) -> Question:
    (question,) = read_questions(path, "arc_easy")
    return question


# MMLU ----------------------------------------------------------------------------------------------------------------


def test_mmlu_s_zip_gives_its_test_questions_with_their_subjects(tmp_path: Path) -> None:
    files = (
        mmlu_files("anatomy") | mmlu_files("us_foreign_policy") | {"data/README.txt": "", "__MACOSX/x_test.csv": "?"}
    )
    questions = read_questions(zipped(tmp_path / "mmlu.zip", files), "mmlu")
    assert [q.subject for q in questions] == ["anatomy"] * 2 + ["us_foreign_policy"] * 2
    first, second = questions[:2]
    assert (first.question, first.options, first.answer) == (ROWS[0][0], ("Seine", "Paris", "red", "2023"), 0)
    assert (second.question, second.options, second.answer) == ("2 + 2, written\nout?", ("1", "2", "3", "4"), 3)
    assert len({q.id for q in questions}) == 4


def test_a_folder_and_a_single_file_read_like_the_zip(tmp_path: Path) -> None:
    for name, text in mmlu_files("anatomy").items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True)
        path.write_text(str(text), encoding="utf-8", newline="")
    expected = read_questions(zipped(tmp_path / "mmlu.zip", mmlu_files("anatomy")), "mmlu")
    assert read_questions(tmp_path / "folder", "mmlu") == expected
    assert read_questions(tmp_path / "folder/data/test/anatomy_test.csv", "mmlu") == expected
    (plain := tmp_path / "plain").mkdir()
    (plain / "anatomy.csv").write_text(as_csv(ROWS), encoding="utf-8", newline="")
    assert [q.subject for q in read_questions(plain, "mmlu")] == ["anatomy", "anatomy"]


def test_the_hub_s_parquet_counts_its_answers_from_zero_and_no_subject_twice(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"question": STEM, "subject": "geography", "choices": FOUR, "answer": 1}
    for folder in ("all", "geography"):
        (tmp_path / folder).mkdir()
        parquet.write_table(pa.Table.from_pylist([row]), tmp_path / folder / "test-00000-of-00001.parquet")
    (question,) = read_questions(tmp_path, "mmlu")
    assert (question.subject, question.options[question.answer]) == ("geography", "Seine")


# ARC -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("labels", ["ABCDE", "12345"])
def test_letters_and_numbers_as_keys_of_three_to_five_options(tmp_path: Path, labels: str, count: int) -> None:
    options = [f"option {i}" for i in range(count)]
    hub = {"text": options, "label": list(labels[:count])}
    published = [{"text": text, "label": label} for text, label in zip(options, labels, strict=False)]
    for at, key in enumerate(labels[:count]):
        rows: list[dict[str, Any]] = [
            {"id": "x", "question": STEM, "choices": hub, "answerKey": key},
            {"id": "x", "question": {"stem": STEM, "choices": published}, "answerKey": key},
        ]
        for row in rows:
            question = one(jsonl(tmp_path / "arc.jsonl", row))
            assert question == Question(STEM, tuple(options), at, "x", "", tuple(labels[:count]))


@pytest.mark.parametrize(
    ("key", "right"), [(1, "Seine"), ("1", "Paris"), ("2", "Seine"), ("B", "Seine"), (" b ", "Seine"), (0, "Paris")]
)
def test_a_number_in_text_counts_from_one_and_an_integer_from_zero(tmp_path: Path, key: Any, right: str) -> None:
    question = one(jsonl(tmp_path / "x.jsonl", {"query": f"Question: {STEM}", "choices": FOUR, "gold": key}))
    assert (question.question, question.options[question.answer]) == (STEM, right)


# PIQA ----------------------------------------------------------------------------------------------------------------

SOLUTIONS = {"goal": "Dry a wet boot.", "sol1": "Freeze it.", "sol2": "Stuff it with paper."}


@pytest.mark.parametrize(
    "row",
    [
        {**SOLUTIONS, "label": 1},
        {"query": "Question: Dry a wet boot.\n", "choices": ["Freeze it.", "Stuff it with paper."], "gold": 1},
    ],
)
def test_piqa_s_rows_and_llm_foundry_s_are_the_same_question(tmp_path: Path, row: dict[str, Any]) -> None:
    (question,) = read_questions(jsonl(tmp_path / "piqa.jsonl", row), "piqa")
    assert (question.question, question.options, question.answer) == (
        "Dry a wet boot.",
        ("Freeze it.", "Stuff it with paper."),
        1,
    )


def test_piqa_s_answers_stand_in_a_file_beside_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "physicaliqa-train-dev"
    folder.mkdir()
    for split, labels in (("train", "0\n"), ("dev", "1\n0\n")):
        rows = [SOLUTIONS] * len(labels.split())
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{split}-labels.lst").write_text(labels, encoding="ascii")
    archive = tmp_path / "piqa.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"physicaliqa-train-dev/{path.name}")
    for source in (folder, folder / "dev.jsonl", archive):
        assert [q.answer for q in read_questions(source, "piqa")] == [1, 0]


def test_rows_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "dev.jsonl", SOLUTIONS)
    (tmp_path / "dev-labels.lst").write_text("1\n0\n", encoding="ascii")
    with pytest.raises(UserError, match="1 rows, its file of labels 2"):
        read_questions(path, "piqa")


def test_arc_s_csv_has_its_options_in_the_question(tmp_path: Path) -> None:
    header = ["questionID", "AnswerKey", "question"]
    rows = [["a", "C", f"{STEM} (A) Paris (B) red (C) Seine"], ["b", "2", "(B) or not? (1) no (2) yes, (B) is (3) 4"]]
    (tmp_path / "ARC-Easy-Test.csv").write_text(as_csv([header, *rows]), encoding="utf-8")
    first, second = read_questions(tmp_path / "ARC-Easy-Test.csv", "arc_easy")
    assert first == Question(STEM, ("Paris", "red", "Seine"), 2, "a", "", ("A", "B", "C"))
    assert (second.question, second.options, second.answer) == ("(B) or not?", ("no", "yes, (B) is", "4"), 1)


def test_columns_of_options_may_leave_the_last_ones_empty(tmp_path: Path) -> None:
    rows = [
        ["question", "A", "B", "C", "D", "E", "answer"],
        [STEM, "x", "y", "Seine", "", "", "C"],
        [STEM, *"vwxyz", "E"],
    ]
    (tmp_path / "own.csv").write_text(as_csv(rows), encoding="utf-8")
    assert [(len(q.options), q.answer) for q in read_questions(tmp_path / "own.csv", "arc_easy")] == [(3, 2), (5, 4)]


def test_arc_s_zip_gives_the_set_that_was_asked_for_once(tmp_path: Path) -> None:
    def row(text: str) -> str:
        return json.dumps({"question": text, "choices": FOUR, "answerKey": "B"})

    files: dict[str, str | bytes] = {
        f"ARC-V1/ARC-{part}/ARC-{part}-{split}.jsonl": row(f"{part} {split}")
        for part in ("Easy", "Challenge")
        for split in ("Train", "Dev", "Test")
    }
    files |= {"ARC-V1/ARC-Easy/ARC-Easy-Test.csv": "not read", "ARC-V1/ARC_Corpus.txt": "not read"}
    path = zipped(tmp_path / "arc.zip", files)
    sets = read_question_sets(arc_easy=path, arc_challenge=path)
    assert {name: [q.question for q in rows] for name, rows in sets.items()} == {
        "arc_easy": ["Easy Test"],
        "arc_challenge": ["Challenge Test"],
    }


def test_a_limit_spreads_over_the_subjects(tmp_path: Path) -> None:
    files = {f"test/{subject}_test.csv": as_csv(ROWS * 5) for subject in "abcd"}
    path = zipped(tmp_path / "mmlu.zip", {**files})
    assert [q.subject for q in read_question_sets(mmlu=path, limit=4)["mmlu"]] == list("abcd")
    assert len(read_question_sets(mmlu=path, limit=1000)["mmlu"]) == 40
    with pytest.raises(UserError, match="at least 1"):
        read_question_sets(mmlu=path, limit=0)


# Mistakes and attacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([1], "row 1 is not an object"),
        ({"choices": FOUR, "gold": 1}, "row 1 has no question .* fields found: choices, gold"),
        ({"question": STEM, "choices": FOUR}, "row 1 has no answer key"),
        ({"question": STEM, "answer": "A"}, "row 1 has 0 options"),
        ({"question": STEM, "choices": ["a", " "], "answer": "A"}, "row 1 has an empty question or option"),
        ({"question": " ", "choices": FOUR, "answer": "A"}, "row 1 has an empty question or option"),
        ({"question": STEM, "choices": ["a"], "answer": "A"}, "row 1 has 1 options"),
        ({"question": STEM, "choices": list("abcdefghijk"), "answer": "A"}, "row 1 has 11 options"),
        ({"question": STEM, "choices": FOUR, "answer": "E"}, "row 1: the answer key 'E' is none"),
        ({"question": STEM, "choices": FOUR, "answer": "0"}, "row 1: the answer key '0' is none"),
        ({"question": STEM, "choices": FOUR, "answer": -1}, "row 1: the answer key '-1' is none"),
        ({"question": STEM, "choices": FOUR, "answer": True}, "row 1: the answer key 'True' is none"),
        ({"question": STEM, "choices": FOUR, "answer": "²"}, "row 1: the answer key '²' is none"),
        ({"question": STEM, "choices": FOUR, "answer": "9" * 5000}, "row 1: the answer key '999"),
        ({"question": STEM, "choices": {"text": FOUR, "label": list("ABC")}, "answerKey": "A"}, "other labels"),
        ({"question": STEM, "choices": {"text": FOUR, "label": list("ABCC")}, "answerKey": "A"}, "other labels"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: Any, complaint: str) -> None:
    path = jsonl(tmp_path / "broken.jsonl", row)
    with pytest.raises(UserError, match=complaint) as caught:
        read_questions(path, "arc_easy")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.csv", b"a,b,c,A\n\xff\xfe,b,c,A\n", "line 2 is not UTF-8"),
        ("x.csv", b"only,two\n", "row 1 has 2 cells"),
        ("x.csv", b"question,A,B,answer\nq,a,b\n", "row 1 has 3 cells"),
        ("x.csv", b'q,a,b,A\n"never closed,a,b,A\n', "line 2 is not CSV"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("x.jsonl", b"", "holds no questions"),
        ("x.parquet", b"PAR1, but not really", "is not Parquet"),
        ("x.tar", b"", "unknown ending '.tar'"),
        ("x.zip", b"PK, but not really", "is not a zip file"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_questions(tmp_path / name, "mmlu")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist_or_holds_no_test_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.zip' does not exist"):
        read_questions(tmp_path / "missing.zip", "mmlu")
    with pytest.raises(UserError, match="holds no test questions of mmlu"):
        read_questions(tmp_path, "mmlu")
    path = zipped(tmp_path / "dev.zip", {"data/dev/anatomy_dev.csv": as_csv(ROWS)})
    with pytest.raises(UserError, match="holds no test questions of mmlu"):
        read_questions(path, "mmlu")


@pytest.mark.parametrize("name", ["../anatomy_test.csv", "/etc/anatomy_test.csv", "a\\..\\b_test.csv"])
def test_a_zip_whose_paths_lead_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "x.zip", {name: as_csv(ROWS)})
    with pytest.raises(UserError, match=r"x\.zip' holds a file with an unsafe path"):
        read_questions(path, "mmlu")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_sets, "LARGEST", 2**20)
    path = zipped(tmp_path / "bomb.zip", {"anatomy_test.csv": b"0" * 2**22})
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):
        read_questions(path, "mmlu")
    (tmp_path / "large.csv").write_bytes(b"0" * (2**20 + 1))
    with pytest.raises(UserError, match="goes beyond 1 MiB"):
        read_questions(tmp_path / "large.csv", "mmlu")


def test_a_zip_that_lies_about_its_sizes_or_asks_for_a_password_is_one_line(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"anatomy_test.csv": as_csv(ROWS * 50)})
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # the central directory: flags at +8, uncompressed size at +24
    locked = bytearray(whole)
    locked[entry + 8] |= 1
    short = bytearray(whole)
    short[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    for content in (locked, short):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"anatomy_test\.csv' cannot be read") as caught:
            read_questions(path, "mmlu")
        assert "\n" not in str(caught.value)
