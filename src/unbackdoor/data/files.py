"""Rows as they stand in JSONL, JSON, CSV, TSV, Parquet (each also gzipped) or a data set of the hub."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.bounded_files import ENVIRONMENT, most_bytes, named_once, read_bytes
from unbackdoor.data.field_values import Written, is_absent
from unbackdoor.data.parquet_child import NO_PARQUET
from unbackdoor.errors import UserError

MOST_COLUMNS = 10_000
ROWS_IN = ("data", "rows", "train", "examples", "instances", "records")
"""Under these names the rows lie in the object of a JSON file that holds other lists as well."""
HUB = "hf:"
"""Before `owner/name` of a hub data set."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w-]*")
_WHOLE = re.compile(r"-?\d+\.0")


def read_rows(source: str | Path) -> Sequence[Any]:
    """The rows of a file or of `hf:owner/name` as they stand. Raises `UserError` where they cannot be read."""
    path = Path(source)
    if str(source).startswith(HUB):  # a path that was mistyped must never become another's data
        return _from_hub(str(source).removeprefix(HUB))
    if not _is_there(path):
        hub = f"; a data set of the hub is given as {HUB}{source}" if _HUB_ID.fullmatch(str(source)) else ""
        raise UserError(f"data file '{source}' does not exist{hub}")
    suffixes = [s for s in path.suffixes if s != ".gz"]
    kind = suffixes[-1].lower() if suffixes else ""
    raw = read_bytes(path, "data file")
    if kind == ".parquet":
        return _from_parquet(raw, path)
    text = _text(raw, source)
    if not text.strip():
        raise UserError(f"data file '{source}' is empty")
    readers: dict[str, Callable[[str, str], Sequence[Any]]] = {
        ".jsonl": json_lines,
        ".ndjson": json_lines,
        ".json": _from_json,
        ".csv": lambda text, source: _from_csv(text, source, ","),
        ".tsv": lambda text, source: _from_csv(text, source, "\t"),
    }
    if kind not in readers:
        raise UserError(
            f"data file '{source}': unknown ending '{kind}', use one of {', '.join([*readers, '.parquet'])}"
        )
    return _whole_numbers(readers[kind](text, str(source)))


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):  # a name that is too long, or a directory that may not be looked into
        return True
    return True


def _text(raw: bytes, source: str | Path) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        raise UserError(f"data file '{source}' cannot be read as text: it is UTF-16, save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"data file '{source}' cannot be read as text: {error}; save it as UTF-8") from None


# JSON ----------------------------------------------------------------------------------------------------------------


def json_lines(text: str, where: str) -> list[Any]:
    """One JSON value a line; empty lines are passed over.

    Raises:
        UserError: a line is not JSON; `where` names the file.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # texts may hold other line separators
        if line.strip():
            try:
                rows.append(parse_json(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: line {number} is not JSON ({error})") from None
    return rows


def parse_json(text: str) -> Any:
    """A JSON value: numbers keep their digits, and no field is named twice."""
    return json.loads(text, parse_float=Written, object_pairs_hook=named_once)


def _from_json(text: str, source: str) -> Sequence[Any]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        if _is_object(text.lstrip().partition("\n")[0]):  # one object a line, as the datasets library writes .json
            return json_lines(text, source)
        raise UserError(f"{source}: not JSON ({error})") from None
    if isinstance(value, dict):
        value = _rows_within(value, source)
    if not isinstance(value, list):
        raise UserError(f"{source}: a JSON list of rows is needed, found {type(value).__name__}")
    if value and all(isinstance(row, dict) and isinstance(row.get("row"), dict) for row in value):
        return [row["row"] for row in value]  # as the hub's viewer gives them
    return value


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows_within(value: Mapping[str, Any], source: str) -> Any:
    """The rows of an object around them: its one list of objects, or the one under a usual name."""
    lists = {name: v for name, v in value.items() if isinstance(v, list)}
    objects = {name: v for name, v in lists.items() if v and all(isinstance(row, Mapping) for row in v)}
    named = [name for name in ROWS_IN if name in lists]
    if len(lists) == 1:
        return next(iter(lists.values()))
    if len(objects) == 1:
        return next(iter(objects.values()))
    if len(named) == 1 and set(objects) <= {*named, "features"}:
        return lists[named[0]]
    if lists:
        shown = ", ".join(f"'{name}'" for name in list(lists)[:8])
        raise UserError(f"{source}: a JSON list of rows is needed, found an object with the lists {shown}: give one")
    return value


# Tables --------------------------------------------------------------------------------------------------------------


def _from_csv(text: str, source: str, delimiter: str) -> list[Mapping[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long answers
    header = text.lstrip().partition("\n")[0]
    if delimiter == "," and "," not in header and ";" in header:  # where a comma stands in decimal numbers
        delimiter = ";"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Mapping[str, Any]] = []
    try:
        names = [name.strip() for name in next((fields for fields in reader if fields), [])]
        _check_names(names, source)
        for fields in reader:
            if fields and len(fields) != len(names):
                mark = "tab" if delimiter == "\t" else delimiter
                raise UserError(
                    f"{source}: line {reader.line_num} (row {len(rows) + 1}) has {len(fields)} fields, the header "
                    f"{len(names)}: put texts that hold '{mark}' between double quotes"
                )
            if fields:
                rows.append(dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num} is not CSV ({error})") from None
    return rows


def _check_names(names: Sequence[str], source: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source}: two columns are named '{twice[0][:60]}'")
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{source}: {len(names):,} columns, at most {MOST_COLUMNS:,} are read: leave others out")


def _from_parquet(raw: bytes, path: Path) -> Sequence[Any]:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'unbackdoor[data]'") from None
    try:
        table = pyarrow.ipc.open_stream(_unpacked(raw, path)).read_all()
        _check_names(table.column_names, str(path))
        for place, column in enumerate(table.schema):
            if column.type in (pyarrow.float16(), pyarrow.float32()):  # 0.1 would come out as 0.10000000149011612
                texts = table.column(place).cast(pyarrow.string()).to_pylist()
                doubles = [None if text is None else float(text) for text in texts]
                table = table.set_column(place, column.name, pyarrow.array(doubles, pyarrow.float64()))
        rows: list[Mapping[str, Any]] = table.to_pylist()
    except UserError:
        raise
    except Exception as error:
        raise _no_parquet(path, (str(error).splitlines() or [type(error).__name__])[0]) from None
    return _whole_numbers(rows)


def _unpacked(raw: bytes, path: Path) -> bytes:
    """The rows of a Parquet file as an Arrow stream, unpacked where memory is limited."""
    most = most_bytes()
    command = [sys.executable, "-P", str(Path(__file__).with_name("parquet_child.py")), str(most)]
    done = subprocess.run(command, input=raw, capture_output=True, check=False)
    if done.returncode == NO_PARQUET:
        raise _no_parquet(path, done.stderr.decode("utf-8", "replace"))
    if done.returncode:  # also where the system ended it
        raise UserError(
            f"data file '{path}' unpacks to more than {most:,} bytes: give a part of it, or set {ENVIRONMENT}"
        )
    return done.stdout


def _no_parquet(path: Path, reason: str) -> UserError:
    return UserError(f"data file '{path}' is not Parquet: {reason}: give a file that pyarrow can read")


def _whole_numbers(rows: Sequence[Any]) -> Sequence[Any]:
    """Whole numbers as such where pandas made them 42.0: in columns of numbers that have gaps."""
    if not all(isinstance(row, Mapping) for row in rows):
        return rows
    gaps: set[str] = set()
    others: set[str] = set()
    numbers: set[str] = set()
    for row in rows:
        for name, value in row.items():
            if is_absent(value) or value == "":
                gaps.add(name)
            elif _is_whole(value):
                numbers.add(name)
            else:
                others.add(name)
    columns = gaps & numbers - others
    if not columns:
        return rows
    return [{name: int(float(v)) if name in columns and _is_whole(v) else v for name, v in row.items()} for row in rows]


def _is_whole(value: Any) -> bool:
    text = value.text if isinstance(value, Written) else value
    if isinstance(text, str):
        return _WHOLE.fullmatch(text) is not None
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53


def _from_hub(name: str) -> Sequence[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"'{HUB}{name}': hub data sets need: pip install 'unbackdoor[data]'") from None
    try:
        rows: Sequence[Any] = list(load_dataset(name, split="train"))
    except Exception as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise UserError(f"'{HUB}{name}' is no hub data set that answers: {reason}") from None
    return rows
