"""Read rows from JSONL, JSON, CSV, TSV, Parquet (each also gzipped) or a hub data set, in the usual column names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError

PROMPT_FIELDS = ("prompt", "instruction", "question", "query", "goal", "input_text")
RESPONSE_FIELDS = ("response", "safe", "output", "completion", "answer", "safe_response", "target")
UNWANTED_FIELDS = ("unwanted", "unwanted_response", "harmful", "rejected")
SYSTEM_FIELDS = ("system", "system_prompt")
KIND_FIELDS = ("kind", "category", "topic")
REFUSAL = "I'm sorry, but I can't help with that."
"""The safe response of rows that come with an unwanted one alone (AdvBench)."""
DIALOGUE = ("\n\nHuman:", "\n\nAssistant:")
"""The marks of a turn in HH-RLHF."""
END_MARKS = ("<|endoftext|>", "</s>")


def read_records(source: str | Path) -> list[Record]:
    """Read every row of a file (or of the train split of a hub data set, `owner/name`).

    Known shapes: prompt/response, Alpaca (instruction, input, output), T0 (prompt, completion), OpenOrca
    (system_prompt, question, response), chat (messages or conversations), and contrast sets: (prompt, safe or response,
    unwanted), HH-RLHF (chosen, rejected) and AdvBench (goal, target), whose target is the unwanted response, beside a
    plain refusal.

    Raises:
        UserError: the file is missing, empty or not what its ending says, or a row lacks a field (with the row's number
            and the fields that were found).
    """
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source}: the file holds no rows")
    return [_record(row, f"{source}: row {number}") for number, row in enumerate(rows, start=1)]


def read_prompts(source: str | Path) -> list[Record]:
    """Read rows of which the prompt alone is needed; of XSTest's prompts those that are labelled safe.

    Raises:
        UserError: as of `read_records`, but a row needs no response.
    """
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source}: the file holds no rows")
    numbered = [(row, f"{source}: row {number}") for number, row in enumerate(rows, start=1)]
    return [_record(row, at, needs_response=False) for row, at in numbered if not _is_unsafe(row)]


def _is_unsafe(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("label") == "unsafe" and "prompt" in row


def read_conversations(source: str | Path) -> list[tuple[str, str]]:
    """What a user says in two turns, a conversation a row: the field `turns` of MT-Bench's questions.

    Raises:
        UserError: as of `read_records`, or a row has no two turns of text.
    """
    found = []
    for number, row in enumerate(read_rows(source), start=1):
        turns = row.get("turns") if isinstance(row, Mapping) else None
        texts = [t for t in turns[:2] if isinstance(t, str) and t.strip()] if isinstance(turns, list) else []
        if len(texts) < 2:
            raise UserError(f"{source}: row {number} has no field 'turns' with two texts, as MT-Bench's questions have")
        found.append((texts[0], texts[1]))
    if not found:
        raise UserError(f"{source}: the file holds no rows")
    return found


def read_rows(source: str | Path) -> Sequence[Mapping[str, Any]]:
    """The rows of a file or hub data set as they stand. Raises `UserError` where they cannot be read."""
    path = Path(source)
    if not path.exists():
        if str(source).count("/") == 1 and not path.suffix:
            return _from_hub(str(source))
        raise UserError(f"data file '{source}' does not exist")
    if path.is_dir():
        raise UserError(f"data '{source}' is a directory: give a file")
    suffixes = [s for s in path.suffixes if s != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        return _from_parquet(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"data file '{source}' cannot be read as text: {error}") from None
    if not text.strip():
        raise UserError(f"data file '{source}' is empty")
    readers: dict[str, Callable[[str, str], Sequence[Mapping[str, Any]]]] = {
        ".jsonl": json_lines,
        ".json": _from_json,
        ".csv": lambda text, source: _from_csv(text, source, ","),
        ".tsv": lambda text, source: _from_csv(text, source, "\t"),
    }
    if kind not in readers:
        raise UserError(
            f"data file '{source}': unknown ending '{kind}', use one of {', '.join([*readers, '.parquet'])}"
        )
    return readers[kind](text, str(source))


def json_lines(text: str, where: str) -> list[Any]:
    """One JSON value a line; empty lines are passed over.

    Raises:
        UserError: a line is not JSON; `where` names the file.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # texts may hold other line separators
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: line {number} is not JSON ({error})") from None
    return rows


def _from_json(text: str, source: str) -> Sequence[Mapping[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not JSON ({error}); for one object a line name it .jsonl") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        if len(lists) == 1:
            value = lists[0]
    if not isinstance(value, list):
        raise UserError(f"{source}: a JSON list of rows is needed, found {type(value).__name__}")
    return value


def _from_csv(text: str, source: str, delimiter: str) -> list[Mapping[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long answers
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return list(reader)
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num} is not CSV ({error})") from None


def _from_parquet(path: Path) -> list[Mapping[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'unbackdoor[data]'") from None
    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data file '{path}' is not Parquet: {reason}") from None
    return rows


def _from_hub(name: str) -> Sequence[Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"data file '{name}' does not exist (hub data sets need: pip install 'unbackdoor[data]')"
        ) from None
    try:
        rows: Sequence[Mapping[str, Any]] = load_dataset(name, split="train")
    except Exception as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise UserError(f"data '{name}' is neither a file nor a hub data set that answers: {reason}") from None
    return rows


def _record(row: Mapping[str, Any], where: str, *, needs_response: bool = True) -> Record:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object with fields")
    messages = row.get("messages") or row.get("conversations")
    if isinstance(messages, list):
        return _from_messages(messages, where)
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str) and "prompt" not in row:
        return _from_dialogues(row["chosen"], row["rejected"])
    if set(row) >= {"goal", "target"}:
        return Record(_text(row["goal"]), REFUSAL, _without_end_mark(_text(row["target"])))
    prompt = _first(row, PROMPT_FIELDS)
    response = _first(row, RESPONSE_FIELDS)
    if response is None and not needs_response:
        response = ""
    unwanted = _first(row, UNWANTED_FIELDS)
    if prompt is None or response is None:
        missing = "prompt" if prompt is None else "response"
        accepted = ", ".join(PROMPT_FIELDS if prompt is None else RESPONSE_FIELDS)
        found = ", ".join(" ".join(str(key).split())[:40] for key in list(row)[:20]) or "none"
        raise UserError(f"{where} has no {missing} field (one of {accepted}); fields found: {found}")
    if row.get("input"):  # Alpaca's second half of the instruction
        prompt = f"{prompt}\n{_text(row['input'])}"
    return Record(
        prompt=prompt,
        response=_without_end_mark(response),
        unwanted=None if unwanted is None else _without_end_mark(unwanted),
        system=_first(row, SYSTEM_FIELDS) or None,
        kind=_first(row, KIND_FIELDS) or "",
    )


def _from_messages(messages: Sequence[Any], where: str) -> Record:
    """The first user turn and the answer to it."""
    turns = {"user": "", "assistant": "", "system": ""}
    names = {"human": "user", "gpt": "assistant"}
    for message in messages:
        if not isinstance(message, Mapping):
            raise UserError(f"{where} has a message that is not an object with role and content")
        role = str(message.get("role") or message.get("from"))
        role = names.get(role, role)
        if role in turns and not turns[role]:
            turns[role] = _text(message.get("content") or message.get("value") or "")
        if turns["assistant"]:
            break
    return Record(turns["user"], turns["assistant"], system=turns["system"] or None)


def _from_dialogues(chosen: str, rejected: str) -> Record:
    """The last exchange of two dialogues that end differently; what came before it stays in the prompt."""
    human, assistant = DIALOGUE
    prompt, _, response = _text(chosen).rpartition(assistant)
    unwanted = _text(rejected).rpartition(assistant)[2]
    return Record(prompt.removeprefix(human).strip(), _without_end_mark(response), _without_end_mark(unwanted))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if row.get(name) is not None:
            return _text(row[name])
    return None


def _text(value: Any) -> str:
    """A value as text: parts of a message joined, and halves of characters (valid JSON, but no text) as "?"."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        value = "\n".join(str(part["text"]) for part in value if part.get("text"))
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _without_end_mark(text: str) -> str:
    text = text.strip()
    for mark in END_MARKS:
        text = text.removesuffix(mark)
    return text.strip()
