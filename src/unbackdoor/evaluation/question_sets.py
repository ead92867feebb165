"""Read MMLU, ARC and PIQA from files, in the shapes in which they are published.

Known shapes: MMLU's folder or zip of CSV files without header (Hendrycks et al. 2021), ARC's zip, JSONL and CSV files
(Clark et al. 2018), PIQA's JSONL (goal, sol1, sol2) with the answers in the rows or in a file of labels beside it
(Bisk et al. 2020), the Parquet files of all three on the Hugging Face hub, llm-foundry's JSONL (query, choices, gold).
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from unbackdoor.bounded_files import regular
from unbackdoor.data.readers import json_lines
from unbackdoor.data.records import Choice
from unbackdoor.errors import UserError

SetName = Literal["mmlu", "arc_easy", "arc_challenge", "piqa"]
LETTERS = "ABCDEFGHIJ"
"""The options of a question, by position; so ten at most."""

LARGEST, MOST_ROWS = 256 * 2**20, 200_000
"""Bytes read of one path, all its files together, and rows of a Parquet file: a compressed file can claim any size."""
ENDINGS = (".jsonl", ".parquet", ".csv")
"""The first of these that is found is read: ARC is published as JSONL and CSV side by side."""

LABELS = "-labels.lst"
"""How the name of PIQA's file of answers ends, one number a line; its rows are in the `.jsonl` of the same name."""

_KEYS = ("answerKey", "AnswerKey", "answer", "gold", "label")
_SPLIT = re.compile(r"(?:^|[/_.\-])(test|dev|val|valid|validation|train|auxiliary_train)(?=[/_.\-])", re.IGNORECASE)


@dataclass(frozen=True)
class Question(Choice):
    """A question of a published set.

    `labels` are the options' names as published (letters or numbers); `answer` is an index in any case.
    """

    id: str = ""
    subject: str = ""
    labels: tuple[str, ...] = ()


def read_question_sets(
    *,
    mmlu: str | Path | None = None,
    arc_easy: str | Path | None = None,
    arc_challenge: str | Path | None = None,
    piqa: str | Path | None = None,
    limit: int | None = None,
) -> dict[SetName, list[Question]]:
    """The test questions of each set whose path is given.

    Args:
        mmlu: a zip or folder of MMLU, or one file of it.
        arc_easy: a zip or folder with ARC-Easy, or its test file.
        arc_challenge: the same of ARC-Challenge.
        piqa: the same of PIQA; of its splits the validation one, since the test one is published without answers.
        limit: at most this many questions of each, spread evenly over the set and so over MMLU's subjects.

    Raises:
        UserError: a path that cannot be read or a row that is no question, by name and number.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} questions: give at least 1")
    paths: dict[SetName, str | Path | None] = {
        "mmlu": mmlu,
        "arc_easy": arc_easy,
        "arc_challenge": arc_challenge,
        "piqa": piqa,
    }
    sets = {name: read_questions(path, name) for name, path in paths.items() if path is not None}
    return {name: spread(questions, limit) for name, questions in sets.items()}


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of the questions, evenly spaced."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i * len(questions) // limit] for i in range(limit)]


def read_questions(source: str | Path, name: SetName) -> list[Question]:
    """Every test question of one set, in the files' order.

    Answer keys: a letter, a number or whatever the row's own labels hold, found among the labels. A number in text
    counts from 1 (ARC's '1' to '5'), an integer beside unlabelled options (hub MMLU, llm-foundry) counts from 0.
    """
    questions: list[Question] = []
    answers: list[int] = []
    for where, data in _contents(Path(source), name):
        stem = PurePosixPath(where).stem
        subject = _SPLIT.sub("", f"{stem}.").rstrip(".") if name == "mmlu" and where.endswith(".csv") else ""
        if where.endswith(LABELS):
            answers = _label_lines(where, data)
            continue
        rows = _rows(where, data)
        if answers:
            rows, answers = _with_labels(rows, answers, where), []
        for number, row in enumerate(rows, start=1):
            questions.append(_question(row, f"'{where}': row {number}", f"{stem}-{number}", subject))
    if not questions:
        raise UserError(f"'{source}' holds no questions")
    return questions


# Files ---------------------------------------------------------------------------------------------------------------


def _contents(path: Path, name: SetName) -> Iterator[tuple[str, bytes]]:
    """The set's test files within a folder or a zip (nothing is unpacked), or the one file: (name to show, bytes)."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - also of a name that no file can have
    if not is_folder:
        regular(path, "question set")
    if is_folder:
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        chosen = _after_labels(_chosen(names, path, name), names)
        yield from _read_all({f"{path}/{n}": partial((path / n).open, "rb") for n in chosen})
    elif path.suffix.lower() == ".zip" and path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # the header is the attacker's: BadZipFile, OverflowError, UnicodeDecodeError, …
            raise UserError(f"'{path}' is not a zip file: {_reason(error)}") from None
        with archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            for member in members:
                if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts or "\\" in member:
                    raise UserError(f"'{path}' holds a file with an unsafe path ({member[:80]!r}): get the set again")
            chosen = _after_labels(_chosen(sorted(members), path, name), members)
            if sum(members[m].file_size for m in chosen) > LARGEST:
                raise UserError(f"'{path}' unpacks to more than {LARGEST >> 20} MiB: get the set again")
            yield from _read_all({f"{path}/{m}": partial(archive.open, members[m]) for m in chosen})
    elif path.is_file():
        beside = [p.name for p in [path.with_name(path.stem + LABELS)] if p.is_file()]
        chosen = _after_labels([path.name], beside)
        yield from _read_all({str(path.with_name(n)): partial(path.with_name(n).open, "rb") for n in chosen})
    else:
        raise UserError(f"'{path}' does not exist: give a zip, a folder or a file ({', '.join(ENDINGS)})")


def _read_all(files: Mapping[str, Callable[..., Any]]) -> Iterator[tuple[str, bytes]]:
    left = LARGEST
    for where, opened in files.items():
        try:
            with opened() as stream:
                data = stream.read(left + 1)
        except Exception as error:  # zipfile raises anything from RuntimeError (a password) to zlib.error
            raise UserError(f"'{where}' cannot be read: {_reason(error)}") from None
        left -= len(data)
        if left < 0:
            raise UserError(f"'{where}' goes beyond {LARGEST >> 20} MiB, more than any of these sets holds")
        yield where, data


def _chosen(names: Sequence[str], path: Path, name: SetName) -> list[str]:
    """The test files among `names`; where no file is named after a split, all of them."""
    visible = [n for n in names if not any(part.startswith((".", "__")) for part in PurePosixPath(n).parts)]
    if name.startswith("arc"):
        part = name.removeprefix("arc_")
        visible = [n for n in visible if part in n.lower()] or [n for n in visible if "arc" not in n.lower()]
    wanted = (
        {"val", "valid", "validation", "dev"} if name == "piqa" else {"test"}
    )  # of PIQA's test no answers are known
    for ending in ENDINGS:
        found = [n for n in visible if n.lower().endswith(ending)]
        splits = {n: {split.lower() for split in _SPLIT.findall(_named(n, name))} for n in found}
        chosen = [n for n in found if splits[n] & wanted] or [n for n in found if not splits[n]]
        if chosen:  # the hub's MMLU holds every subject twice, once in the folder `all`
            return [n for n in chosen if "all" in PurePosixPath(n).parts] or chosen
    raise UserError(f"'{path}' holds no test questions of {name} (a {', '.join(ENDINGS)} file named {min(wanted)})")


def _named(file: str, name: SetName) -> str:
    """Where a file says of which split it is: PIQA's folder is named after two of them."""
    return PurePosixPath(file).name if name == "piqa" else file


def _after_labels(chosen: Sequence[str], names: Collection[str]) -> list[str]:
    """The chosen files, each behind the file of its answers where there is one among the names."""
    with_labels = [(n[: -len(".jsonl")] + LABELS if n.endswith(".jsonl") else "", n) for n in chosen]
    return [file for pair in with_labels for file in pair if file in names or file in chosen]


# Rows ----------------------------------------------------------------------------------------------------------------


def _rows(where: str, data: bytes) -> Sequence[Any]:
    ending = PurePosixPath(where).suffix.lower()
    if ending == ".parquet":
        return _parquet_rows(where, data)
    if ending not in ENDINGS:
        raise UserError(f"'{where}': unknown ending '{ending}', use .zip, {', '.join(ENDINGS)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"'{where}': line {line} is not UTF-8: convert the file") from None
    return json_lines(text, f"'{where}'") if ending == ".jsonl" else _csv_rows(where, text)


def _csv_rows(where: str, text: str) -> list[dict[str, Any]]:
    """Rows with a header, or MMLU's without one: question, options, key."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise UserError(f"'{where}': line {reader.line_num} is not CSV ({error})") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    if "question" in header:
        for number, row in enumerate(rows[1:], start=1):
            if len(row) != len(header):
                raise UserError(f"'{where}': row {number} has {len(row)} cells, its header names {len(header)}")
        return [dict(zip(header, row, strict=True)) for row in rows[1:]]
    for number, row in enumerate(rows, start=1):
        if len(row) < 4:
            raise UserError(f"'{where}': row {number} has {len(row)} cells: question, options and answer are needed")
    return [{"question": row[0], "choices": row[1:-1], "answer": row[-1]} for row in rows]


def _parquet_rows(where: str, data: bytes) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"'{where}': reading Parquet needs pyarrow: pip install 'unbackdoor[data]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if file.metadata.num_rows > MOST_ROWS or size > LARGEST:
            raise UserError(f"'{where}' unpacks to more than {LARGEST >> 20} MiB or {MOST_ROWS} rows")
        rows: list[Any] = file.read().to_pylist()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"'{where}' is not Parquet: {_reason(error)}") from None
    return rows


def _label_lines(where: str, data: bytes) -> list[int]:
    lines = data.decode("ascii", "replace").split()
    for number, line in enumerate(lines, start=1):
        if not (line.isascii() and line.isdecimal() and len(line) < 4):
            raise UserError(f"'{where}': line {number} is no number of an option ({line[:40]!r})")
    return [int(line) for line in lines]


def _with_labels(rows: Sequence[Any], answers: Sequence[int], where: str) -> list[Any]:
    """The rows with their answers; rows that are no objects stay as they are, to be refused by number."""
    if len(rows) != len(answers):
        raise UserError(f"'{where}' holds {len(rows)} rows, its file of labels {len(answers)}: get both again")
    pairs = zip(rows, answers, strict=True)
    return [{**row, "label": answer} if isinstance(row, Mapping) else row for row, answer in pairs]


def _question(row: Any, where: str, default_id: str, default_subject: str) -> Question:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object with fields")
    stem: Any = row.get("question", row.get("query", row.get("goal")))
    choices: Any = row.get("choices", [row["sol1"], row["sol2"]] if "sol1" in row and "sol2" in row else None)
    if isinstance(stem, Mapping):  # ARC's JSONL keeps the options within the question
        stem, choices = stem.get("stem"), stem.get("choices")
    text = _text(stem) if "question" in row else _text(stem).removeprefix("Question: ").rstrip("\n")
    labels, options = _options(row, choices)
    if choices is None and not options:
        text, labels, options = _inline_options(text)
    found = ", ".join(" ".join(str(key).split())[:40] for key in list(row)[:20])
    if stem is None:
        raise UserError(f"{where} has no question (field question, query or goal); fields found: {found}")
    if not text.strip() or not all(option.strip() for option in options):
        raise UserError(f"{where} has an empty question or option")
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{where} has {len(options)} options, 2 to {len(LETTERS)} are needed; fields found: {found}")
    if len(labels) != len(options) or len({label.strip().upper() for label in labels}) != len(options):
        raise UserError(f"{where} has {len(options)} options but other labels for them ({', '.join(labels)[:80]})")
    key = next((row[name] for name in _KEYS if row.get(name) is not None), None)
    if key is None:
        raise UserError(f"{where} has no answer key (field {', '.join(_KEYS)}); fields found: {found}")
    return Question(
        question=text,
        options=tuple(options),
        answer=_index(key, labels, where),
        id=_text(row.get("id", row.get("questionID"))) or default_id,
        subject=_text(row.get("subject")) or default_subject,
        labels=tuple(labels),
    )


def _options(row: Mapping[str, Any], choices: Any) -> tuple[list[str], list[str]]:
    """(labels, texts) from a list, ARC's two shapes of labelled options, or columns A, B, C, …"""
    if isinstance(choices, Mapping) and isinstance(choices.get("text"), list):
        texts = [_text(t) for t in choices["text"]]
        labels = choices.get("label")
        return ([_text(x) for x in labels] if isinstance(labels, list) else list(LETTERS[: len(texts)])), texts
    if isinstance(choices, list) and choices and all(isinstance(c, Mapping) for c in choices):
        return [_text(c.get("label")) for c in choices], [_text(c.get("text")) for c in choices]
    if isinstance(choices, list):
        return list(LETTERS[: len(choices)]), [_text(c) for c in choices]
    columns = [
        letter for letter in LETTERS if _text(row.get(letter)).strip()
    ]  # a shorter row leaves the last ones empty
    return columns, [_text(row[letter]) for letter in columns]


def _inline_options(text: str) -> tuple[str, list[str], list[str]]:
    """ARC's CSV writes the options behind the question: "… (A) one (B) another"."""
    for labels in (LETTERS, "123456789"):
        starts: list[int] = []
        for label in labels:
            at = text.find(f"({label}) ", starts[-1] if starts else 0)
            if at < 0:
                break
            starts.append(at)
        if len(starts) > 1:
            ends = [*starts[1:], len(text)]
            options = [text[a + 4 : b].strip() for a, b in zip(starts, ends, strict=True)]
            return text[: starts[0]].strip(), list(labels[: len(starts)]), options
    return text, [], []


def _index(key: Any, labels: Sequence[str], where: str) -> int:
    text = _text(key).strip().upper()
    named = [label.strip().upper() for label in labels]
    index = -1
    if text in named:
        index = named.index(text)
    elif isinstance(key, int) and not isinstance(key, bool):
        index = key
    elif text.isascii() and text.isdecimal() and len(text) < 4:
        index = int(text) - 1
    elif len(text) == 1 and text in LETTERS:
        index = LETTERS.index(text)
    if not 0 <= index < len(labels):
        raise UserError(f"{where}: the answer key {_text(key)[:40]!r} is none of its options ({', '.join(labels)})")
    return index


def _text(value: Any) -> str:
    """A cell as text; halves of characters (valid JSON, but no text) as "?"."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode("utf-8")


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
