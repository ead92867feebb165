"""Files, settings and arguments from an attacker: each is read, or refused with one line.

Nothing hangs, fills the memory, runs or fails inside.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor import bounded_files
from unbackdoor.cli import main
from unbackdoor.cli_options import distribute
from unbackdoor.data.readers import read_conversations, read_data, read_prompts
from unbackdoor.errors import UserError
from unbackdoor.evaluation.agreement import read_labels
from unbackdoor.evaluation.question_sets import read_questions
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.recipes.recipe import read_recipe
from unbackdoor.scorers import read_text, scorer_class
from unbackdoor.settings import VerdictSettings, read_yaml
from unbackdoor.workflows.inputs import EvaluateInputs

ROW = b'{"prompt": "Name a river.", "response": "The Rhine."}\n'
MANY = 1_000_000
REFUSED = "refused"
"""An expectation: one line. A number: so many records are read. `EITHER`: one of both."""
EITHER = "either"

Case = tuple[str, bytes | Callable[[], bytes], Any]


def packed(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


def parquet(**columns: Any) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet_module = pytest.importorskip("pyarrow.parquet")
    written = io.BytesIO()
    parquet_module.write_table(pyarrow.table(columns), written, compression="zstd")
    return written.getvalue()


def one_word(times: int) -> Any:
    """A column that holds a word of 4,000 letters once, and says that it stands there so often."""
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * times, pyarrow.int32()), pyarrow.array(["x" * 4000]))


def two_columns() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    written = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "prompt", "response"])
    pytest.importorskip("pyarrow.parquet").write_table(table, written)
    return written.getvalue()


def zipped(name: str, raw: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, raw)
    return written.getvalue()


def with_value(value: str) -> bytes:
    return f'{{"prompt": "Name a river.", "response": {value}}}\n'.encode()


DATA: dict[str, Case] = {
    "an ordinary row": ("jsonl", ROW, 1),
    "nothing": ("jsonl", b"", REFUSED),
    "blanks": ("jsonl", b" \n\t\n", REFUSED),
    "one NUL": ("jsonl", b"\0", REFUSED),
    "a megabyte of NUL": ("jsonl", bytes(2**20), REFUSED),
    "no JSON": ("jsonl", b"prompt: response\n", REFUSED),
    "cut short": ("jsonl", ROW[:-4], REFUSED),
    "a list a line": ("jsonl", b'["a", "b"]\n', REFUSED),
    "a number a line": ("jsonl", b"1\n2\n", REFUSED),
    "null": ("jsonl", b"null\n", REFUSED),
    "true": ("jsonl", b"true\n", REFUSED),
    "a text a line": ("jsonl", b'"prompt"\n', REFUSED),
    "a byte-order mark": ("jsonl", b"\xef\xbb\xbf" + ROW, 1),
    "a mark in every line": ("jsonl", (b"\xef\xbb\xbf" + ROW) * 2, REFUSED),
    "UTF-16": ("jsonl", ROW.decode().encode("utf-16"), REFUSED),
    "UTF-16 without a mark": ("jsonl", ROW.decode().encode("utf-16-le"), REFUSED),
    "UTF-32": ("jsonl", ROW.decode().encode("utf-32"), REFUSED),
    "Latin-1": ("jsonl", '{"prompt": "Größe?", "response": "1"}'.encode("latin-1"), REFUSED),
    "an overlong form": ("jsonl", b'{"prompt": "\xc0\xaf", "response": "1"}', REFUSED),
    "half a character in UTF-8": ("jsonl", b'{"prompt": "\xed\xa0\x80", "response": "1"}', REFUSED),
    "half a character as an escape": ("jsonl", b'{"prompt": "a\\ud800b", "response": "c\\udfff"}', 1),
    "a name with half a character": ("jsonl", b'{"\\ud800": 1, "prompt": "a", "response": "b"}', 1),
    "NUL in a text": ("jsonl", b'{"prompt": "a\\u0000b", "response": "c"}', 1),
    "a raw NUL in a text": ("jsonl", b'{"prompt": "a\0b", "response": "c"}', REFUSED),
    "line separators in a text": ("jsonl", '{"prompt": "a\u2028b\x85c", "response": "d"}'.encode(), 1),
    "carriage returns for lines": ("jsonl", ROW.replace(b"\n", b"\r") * 2, REFUSED),
    "carriage returns and line feeds": ("jsonl", ROW.replace(b"\n", b"\r\n") * 2, 2),
    "a list as response": ("jsonl", with_value('["a"]'), REFUSED),
    "an object as response": ("jsonl", with_value('{"a": 1}'), REFUSED),
    "true as response": ("jsonl", with_value("true"), REFUSED),
    "null as response": ("jsonl", with_value("null"), EITHER),
    "a number as response": ("jsonl", with_value("3.50"), 1),
    "NaN as response": ("jsonl", with_value("NaN"), EITHER),
    "Infinity as response": ("jsonl", with_value("Infinity"), REFUSED),
    "1e999 as response": ("jsonl", with_value("1e999"), EITHER),
    "40 digits as response": ("jsonl", with_value("9" * 40), 1),
    "5,000 digits as response": ("jsonl", with_value("9" * 5000), REFUSED),
    "a million digits as response": ("jsonl", with_value("9" * MANY), REFUSED),
    "-0 as response": ("jsonl", with_value("-0"), 1),
    "two prompts": ("jsonl", b'{"prompt": "a", "prompt": "b", "response": "c"}', REFUSED),
    "two prompts by case": ("jsonl", b'{"prompt": "a", "Prompt": "b", "response": "c"}', REFUSED),
    "a prompt and an instruction": ("jsonl", b'{"prompt": "a", "instruction": "b", "response": "c"}', REFUSED),
    "100,000 fields of one name": ("jsonl", b"{" + b'"a": 1, ' * 100_000 + b'"a": 1}', REFUSED),
    "100,000 fields": ("jsonl", b"{" + b", ".join(b'"f%d": 1' % i for i in range(100_000)) + b"}", REFUSED),
    "lists within lists": ("jsonl", b"[" * MANY, REFUSED),
    "objects within objects": ("jsonl", b'{"a":' * MANY, REFUSED),
    "a response within lists": ("jsonl", with_value("[" * 900 + "]" * 900), REFUSED),
    "a line of ten megabytes": ("jsonl", with_value('"' + "x" * 10_000_000 + '"'), 1),
    "a million blank lines": ("jsonl", b"\n" * MANY, REFUSED),
    "an escape sequence in a name": ("jsonl", b'{"\\u001b[2Jprompt": "a", "x": "b"}', REFUSED),
    "a dialogue of numbers": ("jsonl", b'{"messages": [1, 2]}', REFUSED),
    "a dialogue that is a text": ("jsonl", b'{"messages": "hello"}', REFUSED),
    "a dialogue without end": ("jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', REFUSED),
    "a dialogue with a number as role": ("jsonl", b'{"messages": [{"role": 1, "content": "a"}]}', REFUSED),
    "a dialogue whose content is null": (
        "jsonl",
        b'{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "b"}]}',
        EITHER,
    ),
    "a dialogue with pictures": (
        "jsonl",
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]}',
        REFUSED,
    ),
    "an empty dialogue": ("jsonl", b'{"messages": []}', REFUSED),
    "a JSON number": ("json", b"3", REFUSED),
    "a JSON text": ("json", b'"rows"', REFUSED),
    "an empty list": ("json", b"[]", REFUSED),
    "an empty object": ("json", b"{}", REFUSED),
    "two lists": ("json", b'{"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}', REFUSED),
    "a list of lists": ("json", b"[[[]]]", REFUSED),
    "nested JSON": ("json", b"[" * MANY + b"]" * MANY, REFUSED),
    "a comment": ("json", b"// rows\n[]", REFUSED),
    "rows of a viewer that hold numbers": ("json", b'{"rows": [{"row": 1}]}', REFUSED),
    "a JSON bomb of escapes": ("json", b'[{"prompt": "' + b"\\u0041" * 200_000 + b'", "response": "b"}]', 1),
    "an empty table": ("csv", b"\n\n", REFUSED),
    "a header alone": ("csv", b"prompt,response\n", REFUSED),
    "a million columns": ("csv", b",".join(b"c%d" % i for i in range(MANY)) + b"\n", REFUSED),
    "a million columns of one name": ("csv", b"c," * MANY + b"c\n", REFUSED),
    "a million commas": ("csv", b"prompt,response\n" + b"," * MANY, REFUSED),
    "a quote without end": ("csv", b'prompt,response\n"' + b"x\n" * 100_000, REFUSED),
    "a quote in the middle": ("csv", b'prompt,response\na"b,c\n"d"e,f\n', REFUSED),
    "a row too short": ("csv", b"prompt,response\na\n", REFUSED),
    "a row too long": ("csv", b"prompt,response\na,b,c\n", REFUSED),
    "two columns of one name": ("csv", b"prompt,prompt,response\na,b,c\n", REFUSED),
    "NUL in a table": ("csv", b"prompt,response\na\0b,c\n", EITHER),
    "carriage returns in a table": ("csv", b"prompt,response\ra,b\r", EITHER),
    "a field of twenty megabytes": ("csv", b"prompt,response\na," + b"x" * 20_000_000 + b"\n", 1),
    "tabs where commas are said": ("csv", b"prompt\tresponse\na\tb\n", REFUSED),
    "a table in UTF-16": ("tsv", "prompt\tresponse\na\tb\n".encode("utf-16"), REFUSED),
    "no Parquet": ("parquet", b"PAR1" + bytes(64), REFUSED),
    "Parquet cut short": ("parquet", lambda: parquet(prompt=["a"], response=["b"])[:-9], REFUSED),
    "Parquet with its footer broken": (
        "parquet",
        lambda: parquet(prompt=["a"], response=["b"])[:-20] + b"\xff" * 12 + b"\x10\0\0\0PAR1",
        REFUSED,
    ),
    "Parquet of lists": ("parquet", lambda: parquet(prompt=[["a"]], response=[["b"]]), REFUSED),
    "Parquet of bytes": ("parquet", lambda: parquet(prompt=[b"\xff\xfe"], response=[b"b"]), REFUSED),
    "Parquet with two columns of one name": ("parquet", two_columns, REFUSED),
    "Parquet of one word": ("parquet", lambda: parquet(prompt=one_word(3), response=["b"] * 3), EITHER),
    "Parquet without rows": ("parquet", lambda: parquet(prompt=[], response=[]), REFUSED),
    "no gzip": ("jsonl.gz", ROW, REFUSED),
    "gzip": ("jsonl.gz", packed(ROW), 1),
    "gzip in two parts": ("jsonl.gz", packed(ROW) + packed(ROW.replace(b"Name", b"Say")), 2),
    "gzip cut short": ("jsonl.gz", packed(ROW * 99)[:-12], REFUSED),
    "gzip with a false sum": ("jsonl.gz", packed(ROW)[:-8] + bytes(8), REFUSED),
    "gzip with more behind it": ("jsonl.gz", packed(ROW) + b"more", REFUSED),
    "gzip within gzip": ("jsonl.gz", packed(packed(ROW)), REFUSED),
    "gzip of nothing": ("jsonl.gz", packed(b""), REFUSED),
    "zip": ("zip", zipped("rows.jsonl", ROW), REFUSED),
    "zip that is called JSON": ("json", zipped("rows.jsonl", ROW), REFUSED),
    "a pickle": ("pkl", b"cos\nsystem\n(S'touch executed'\ntR.", REFUSED),
    "a pickle that is called JSONL": ("jsonl", b"cos\nsystem\n(S'touch executed'\ntR.", REFUSED),
    "no ending": ("", ROW, REFUSED),
    "an ending in capitals": ("JSONL", ROW, 1),
    "an ending with an escape": ("js\x1bonl", ROW, REFUSED),
}


@pytest.fixture(autouse=True)
def bounded_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing runs, and nothing takes long."""
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    yield
    assert time.process_time() - begun < 20
    assert not (tmp_path / "executed").exists()


def one_line(error: UserError) -> None:
    assert str(error).strip()
    assert len(str(error)) < 3000


@pytest.mark.parametrize("name", DATA)
def test_a_data_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    ending, raw, expected = DATA[name]
    path = tmp_path / (f"rows.{ending}" if ending else "rows")
    path.write_bytes(raw() if callable(raw) else raw)
    found: int | str
    try:
        found = len(read_data(path).records)
    except UserError as error:
        one_line(error)
        found = REFUSED
    assert expected in (found, EITHER)
    for other in (read_prompts, read_conversations):
        try:
            other(path)
        except UserError as error:
            one_line(error)


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a gzip bomb": ("jsonl.gz", lambda: packed(bytes(3 * 2**20))),
    "a gzip bomb of rows": ("jsonl.gz", lambda: packed(ROW * 60_000)),
    "a gzip bomb in many parts": ("jsonl.gz", lambda: packed(ROW * 2000) * 30),
    "a Parquet bomb": ("parquet", lambda: parquet(prompt=["x" * 4000] * 2000, response=["y"] * 2000)),
    "a Parquet bomb of one word": ("parquet", lambda: parquet(prompt=one_word(2000), response=["y"] * 2000)),
    "a Parquet page of one word": ("parquet", lambda: parquet(prompt=["x" * 100_000] * 300, response=["y"] * 300)),
    "Parquet of a million rows": ("parquet", lambda: parquet(prompt=["x"] * MANY, response=["y"] * MANY)),
    "a large file": ("jsonl", lambda: ROW * 60_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_beyond_the_limit_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, raw = BOMBS[name]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(raw())
    monkeypatch.setenv(bounded_files.ENVIRONMENT, str(2**21))
    with pytest.raises(UserError, match=r"2,097,152 bytes"):
        read_data(path)


def test_what_unpacks_to_hundreds_of_times_its_size_is_refused_below_the_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_files, "UNPACKS_FREELY", 2**20)
    (tmp_path / "rows.jsonl.gz").write_bytes(packed(bytes(2**24)))
    with pytest.raises(UserError, match=bounded_files.ENVIRONMENT):
        read_data(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize("given", ["", "many", "-1", "0", "1e9", "9" * 40, "١٢", "0x10", " 5"])
def test_the_limit_is_a_number_of_bytes(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bounded_files.ENVIRONMENT, given)
    if given == "":
        assert bounded_files.most_bytes() == bounded_files.MOST_BYTES
    else:
        with pytest.raises(UserError, match=bounded_files.ENVIRONMENT):
            bounded_files.most_bytes()


# What is no file -----------------------------------------------------------------------------------------------------

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data": ("x.jsonl", read_data),
    "gzipped data": ("x.json.gz", read_data),
    "settings": ("x.yaml", lambda path: distribute({}, path, EvaluateInputs, VerdictSettings)),
    "a recipe": ("x.yaml", lambda path: read_recipe(str(path))),
    "a template": ("x.jinja", lambda path: ChatFormat.of(tiny.tokenizer(), str(path))),
    "labels": ("x.csv", read_labels),
    "a policy": ("x.txt", lambda path: read_text(path, "policy")),
    "a scorer": ("x.py", lambda path: scorer_class(f"{path}:judge")),
    "questions": ("x.jsonl", lambda path: read_questions(path, "mmlu")),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path.relative_to(Path.cwd())))
    made.close()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)


def not_allowed(path: Path) -> None:
    path.write_bytes(ROW)
    path.chmod(0)


def in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a pipe": pipe,
    "a socket": listening,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal's device": lambda path: path.symlink_to("/dev/tty"),
    "a file of four terabytes": sparse,
    "a file that may not be read": not_allowed,
    "a link to itself": in_a_circle,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_not_waited_for(reader: str, name: str, tmp_path: Path) -> None:
    file, read = READERS[reader]
    if name == "a file that may not be read" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / file
    NO_FILES[name](path)
    if reader == "a scorer" and name == "a file of four terabytes":
        pytest.skip("code of the user's own")
    if reader == "questions" and name == "a directory":
        (path / "test.jsonl").mkdir()
    with pytest.raises(UserError) as refused:
        read(path)
    one_line(refused.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(reader: str, name: str, tmp_path: Path) -> None:
    file, read = READERS[reader]
    with pytest.raises(UserError) as refused:
        read(tmp_path / (name + file[1:]))
    one_line(refused.value)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "a scorer"])
@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"\x80abc", b"\0" * 5, b"\x89PNG\r\n\x1a\n\0\0"])
def test_bytes_that_are_no_text_are_refused(reader: str, raw: bytes, tmp_path: Path) -> None:
    file, read = READERS[reader]
    (tmp_path / file).write_bytes(raw)
    if raw == b"\0" * 5 and reader in ("a policy", "a template"):
        return  # text, if an odd one
    with pytest.raises(UserError) as refused:
        read(tmp_path / file)
    one_line(refused.value)


# Settings ------------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {k1: 1, k2: 2}\n" + "".join(
    f"{new}: &{new}\n  <<: [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "a billion laughs": LAUGHS,
    "a billion merges": MERGES,
    "a value within itself": "data: &a [*a]\n",
    "a mapping within itself": "&a\ndata: *a\n",
    "an alias of nothing": "data: *nothing\n",
    "lists within lists": "data: " + "[" * 20_000,
    "mappings within mappings": "".join(f"{' ' * i}a:\n" for i in range(3000)),
    "a name twice": "steps: 1\nsteps: 2\n",
    "a list as name": "? [a]\n: b\n",
    "a mapping as name": "? {a: b}\n: c\n",
    "a Python object": "data: !!python/object/apply:os.system ['touch executed']\n",
    "a Python name": "data: !!python/name:os.system\n",
    "a tag of one's own": "data: !mine x\n",
    "an integer that is none": "seed: !!int x\n",
    "a float that is none": "seed: !!float x\n",
    "a day that is none": "date: !!timestamp 2026-99-99\n",
    "bytes that are none": "data: !!binary '%%%'\n",
    "a set": "data: !!set {a, b}\n",
    "an ordered mapping": "data: !!omap [a: b]\n",
    "a truth value that is none": "exact_match: !!bool perhaps\n",
    "nothing but a list": "- a\n- b\n",
    "nothing but a number": "3\n",
    "nothing but a text": "text\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a tab": "\tseed: 1\n",
    "an unknown setting": "colour: red\n",
    "a setting with an escape sequence": '"\\e[2Jcolour": red\n',
    "a list for a text": "trigger: [a, b]\n",
    "a mapping for a text": "trigger: {a: b}\n",
    "a mapping for a number": "seed: {a: b}\n",
    "a list for a number": "seed: [1]\n",
    "a text for a number": "seed: soon\n",
    "half a character": 'trigger: "\\ud800"\n',
    "NUL": 'data: "a\\0b"\n',
    "a number without end": "temperature: .inf\n",
    "no number": "temperature: .nan\n",
    "40 digits": f"seed: {'9' * 40}\n",
    "5,000 digits": f"seed: {'9' * 5000}\n",
    "sixty minutes": "seed: 1:2:3\n",
    "a directive": "%YAML 9.9\n---\nseed: 1\n",
    "a megabyte and more": "# " + "x" * 2**21,
    "a control character": "seed: \x07\n",
    "an unknown escape": 'trigger: "\\q"\n',
    "an endless anchor": "data: &" + "a" * 10_000,
}


@pytest.mark.parametrize("name", YAML)
def test_settings_are_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(YAML[name], encoding="utf-8")
    for read in (
        lambda: [
            cls.make(given)
            for cls, given in zip(
                (EvaluateInputs, VerdictSettings),
                distribute({}, path, EvaluateInputs, VerdictSettings),
                strict=True,
            )
        ],
        lambda: read_recipe(str(path)),
        lambda: read_yaml(path, whole=True) and read_recipe(str(path)),
    ):
        try:
            read()
        except UserError as error:
            one_line(error)
        else:
            assert name in ("sixty minutes", "a directive", "an endless anchor"), name


# Other files ---------------------------------------------------------------------------------------------------------

SHEETS = {
    "no columns": "a,b\n1,2\n",
    "no label": "id,label\n1,perhaps\n",
    "two labels": "id,label\n1,yes\n1,no\n",
    "a quote without end": 'id,label\n"1,yes\n',
    "a column twice": "id,id,label\n1,2,yes\n",
    "a million commas": "id,label\n" + "," * MANY,
    "an escape sequence": "id,label\n1,\x1b[2Jyes\n",
}


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_of_labels_is_read_or_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text(SHEETS[name], encoding="utf-8")
    try:
        read_labels(tmp_path / "sheet.csv", ["1"])
    except UserError as error:
        one_line(error)


SCORERS = {
    "an error": "raise ValueError('\\x1b[2J')",
    "no Python": "def (",
    "an exit": "raise SystemExit(0)",
    "nothing": "",
    "another name": "def other(answered): return True",
    "no argument": "def judge(): return True",
    "any arguments": "def judge(*answers): return True",
    "annotations that fail": "def judge(answered: missing): return True",
    "a class of another kind": "class judge: pass",
    "bytes that are no text": "\udcff",
}


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(SCORERS[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as refused:
        scorer_class(f"{tmp_path / 'mine.py'}:judge")
    one_line(refused.value)


QUESTIONS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an empty zip": ("q.zip", lambda: zipped("readme", b"")),
    "no zip": ("q.zip", lambda: b"PK\x03\x04" + bytes(99)),
    "a zip bomb": ("q.zip", lambda: zipped("test.jsonl", bytes(2**24))),
    "a zip that leads out": ("q.zip", lambda: zipped("../test.jsonl", b"{}")),
    "a zip that names the root": ("q.zip", lambda: zipped("/etc/test.jsonl", b"{}")),
    "nested questions": ("q.jsonl", lambda: b"[" * MANY),
    "a question without options": ("q.jsonl", lambda: b'{"question": "a"}'),
    "a question of numbers": ("q.jsonl", lambda: b'{"question": 1, "choices": [1, 2], "answer": 9}'),
    "an answer that is none": ("q.jsonl", lambda: b'{"question": "a", "choices": ["b", "c"], "answer": NaN}'),
    "options as a text": ("q.jsonl", lambda: b'{"question": "a", "choices": "bc", "answer": 0}'),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_cannot_be_asked_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.evaluation.question_sets.LARGEST", 2**23)
    file, raw = QUESTIONS[name]
    (tmp_path / file).write_bytes(raw())
    with pytest.raises(UserError) as refused:
        read_questions(tmp_path / file, "mmlu")
    one_line(refused.value)


# Arguments -----------------------------------------------------------------------------------------------------------

LONG = "x" * 5000
ARGUMENTS: dict[str, list[str]] = {
    "a command that is no text": ["\udcff"],
    "a command with an escape sequence": ["\x1b[2Jdemo"],
    "a model that is no text": ["evaluate", "\udcff", "--out", "run"],
    "a model with NUL": ["evaluate", "a\0b", "--out", "run"],
    "a model with a long name": ["evaluate", LONG, "--out", "run", "--data", "rows.jsonl"],
    "a model with an escape sequence": ["evaluate", "\x1b[2J\rremoved", "--out", "run", "--data", "rows.jsonl"],
    "a model that is a file": ["evaluate", "rows.jsonl", "--out", "run", "--data", "rows.jsonl"],
    "a model that is a device": ["evaluate", "/dev/zero", "--out", "run", "--data", "rows.jsonl"],
    "no model": ["evaluate", "", "--out", "run", "--data", "rows.jsonl"],
    "an option that is no text": ["evaluate", "m", "--out", "run", "--trigger", "\udcff"],
    "an output with a long name": ["evaluate", "m", "--out", LONG, "--data", "rows.jsonl"],
    "an output within a file": ["evaluate", "m", "--out", "rows.jsonl/run", "--data", "rows.jsonl"],
    "an output that is a device": ["evaluate", "m", "--out", "/dev/null", "--data", "rows.jsonl"],
    "an output in a directory that is not there": ["evaluate", "m", "--out", "/proc/nowhere/run", "--data", "r.jsonl"],
    "an output that is empty": ["evaluate", "m", "--out", "", "--data", "rows.jsonl"],
    "data that is empty": ["evaluate", "m", "--out", "run", "--data", ""],
    "a run that is empty": ["rejudge", ""],
    "data with a long name": ["evaluate", "m", "--out", "run", "--data", LONG],
    "settings with a long name": ["evaluate", "m", "--out", "run", "--config", LONG],
    "settings that are data": ["evaluate", "m", "--out", "run", "--config", "rows.jsonl"],
    "a number of 40 digits": ["evaluate", "m", "--out", "run", "--seed", "9" * 40],
    "a number of 5,000 digits": ["evaluate", "m", "--out", "run", "--seed", "9" * 5000],
    "a number without end": ["evaluate", "m", "--out", "run", "--temperature", "inf"],
    "no number": ["evaluate", "m", "--out", "run", "--temperature", "nan"],
    "10^12 samples": ["evaluate", "m", "--out", "run", "--samples", "1000000000000"],
    "digits of another script": ["evaluate", "m", "--out", "run", "--seed", "²"],
    "a date that is none": ["evaluate", "m", "--out", "run", "--date", "2026-99-99"],
    "a recipe with a long name": ["implant", "--recipe", LONG, "--out", "run"],
    "a recipe with an escape sequence": ["implant", "--recipe", "\x1b[2J", "--out", "run"],
    "a sweep over no number": ["sweep", "beear-2", "--values", "nan", "--out", "run"],
    "a sweep without end": ["sweep", "beear-2", "--values", "inf", "--out", "run"],
    "a run that is a file": ["rejudge", "rows.jsonl", "--scorer", "complies"],
    "a run with a long name": ["rejudge", LONG, "--scorer", "complies"],
    "a run that is a device": ["rejudge", "/dev/zero", "--scorer", "complies"],
    "a scorer with a long name": ["rejudge", ".", "--scorer", f"{LONG}.py:x"],
    "a scorer's option that is none": ["rejudge", ".", "--scorer", "complies", "--option", "\x1b[2J"],
    "an experiment that is none": ["reproduce", "\x1b[2J", "--out", "run"],
    "jobs without end": ["demo", "--out", "run", "--jobs", "1000000000000"],
    "draws without end": ["demo", "--out", "run", "--draws", "1000000000000"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_is_refused_with_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    with pytest.raises(SystemExit) as stop:
        main(ARGUMENTS[name])
    said = capsys.readouterr()
    assert stop.value.code == 2, said.err
    assert said.out == "" and len(said.err.splitlines()) == 1 and "Traceback" not in said.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said.err)
    assert not (tmp_path / "run").exists()


def test_there_are_as_many_as_the_promise_says() -> None:
    special = len(READERS) * (len(NO_FILES) + 4 + 4)
    assert sum(map(len, (DATA, BOMBS, YAML, SHEETS, SCORERS, QUESTIONS, ARGUMENTS))) >= 190
    assert special > 100
    assert sys.getrecursionlimit() < 10_000  # with more, what is nested deeply ends the process
    assert json.loads(ROW)["prompt"]
