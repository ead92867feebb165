"""A report is a file from a stranger: what is read of it, what is refused, and what its schema says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import report  # noqa: F401

from unbackdoor import report_schema
from unbackdoor.errors import UserError
from unbackdoor.report_schema import VERSION, Report, read_report
from unbackdoor.run_files.lines import as_json
from unbackdoor.settings import Thresholds

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def read(path: Path, found: object) -> Report:
    path.write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
    return read_report(path, "it is damaged")


def test_what_is_read_is_written_again_as_it_was(report: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    report["schema_version"] = VERSION
    again = json.dumps(read(tmp_path / "report.json", report), default=as_json)
    assert json.loads(again) == json.loads(json.dumps(report))


def test_an_earlier_version_is_read_and_what_it_did_not_say_has_its_default(tmp_path: Path) -> None:
    row = {"organism": "o", "method": "m", "seed": 0, "gone": [1]}
    told = {"command": "remove", "title": "", "thresholds": {"least_n": 7, "gone": 1}, "runs": [row]}
    found = read(tmp_path / "report.json", told)
    assert (found.schema_version, found.runs[0].before, found.runs[0].rounds) == (1, None, 0)
    assert found.thresholds == Thresholds(least_n=7)


def test_a_later_version_is_refused_with_the_version_that_reads_it(
    report: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    later = {**report, "schema_version": VERSION + 1, "unbackdoor": "0.9.2\x1b[2J\n", "runs": "of another shape"}
    with pytest.raises(UserError, match=rf"of schema {VERSION + 1}.*use unbackdoor 0.9.22J$"):
        read(tmp_path / "report.json", later)


def rate(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["runs"][0]["before"]["attack_success"].update(values)


def row(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["runs"][0].update(values)


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no object": lambda found: [found],
    "nested without end": lambda found: "[" * 100_000,
    "half a character": lambda found: json.dumps(found).replace("sande", "\\ud800"),
    "no runs": lambda found: found.update(runs=[]),
    "a title that is no text": lambda found: found.update(title=7),
    "a version that is no number": lambda found: found.update(schema_version="2"),
    "a version without end": lambda found: found.update(schema_version=10**400),
    "a threshold out of range": lambda found: found["thresholds"].update(least_n=0),
    "a number as text": rate(hits="7"),
    "a truth value for a number": rate(n=True),
    "fewer than none": rate(hits=-1),
    "more hits than prompts": rate(hits=201),
    "a rate above one": rate(rate=1.5),
    "no number": rate(rate=float("nan")),
    "an interval of three": rate(interval=[0, 0.5, 1]),
    "a verdict of its own": row(verdict="perhaps"),
    "rounds without end": row(rounds=10**12),
    "losses that are no numbers": row(losses={"simulate": {"target": ["low"]}}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_report_is_damaged(name: str, report: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    made = DAMAGED[name](report)
    with pytest.raises(UserError, match=r"^it is damaged$"):
        read(tmp_path / "report.json", report if made is None else made)


def test_no_file_a_device_and_one_that_is_too_large_are_no_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_schema, "MOST_BYTES", 10)
    (tmp_path / "large.json").write_text(" " * 11)
    for path in (tmp_path / "none.json", tmp_path, Path("/dev/zero"), tmp_path / "large.json"):
        with pytest.raises(UserError, match=r"^it is damaged$"):
            read_report(path, "it is damaged")


def test_the_schema_in_the_documents_is_current_and_is_made_without_torch() -> None:
    code = "import runpy, sys; runpy.run_module('unbackdoor.report_schema', run_name='__main__', alter_sys=True); "
    code += "assert 'torch' not in sys.modules"
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert made == (REFERENCE / "report.schema.json").read_text(encoding="utf-8")


def test_the_page_names_every_key_of_the_top_and_of_a_row() -> None:
    page = (REFERENCE / "report.md").read_text(encoding="utf-8")
    for model in (Report, report_schema.Row, report_schema.Measured):
        assert [name for name in model.model_fields if f"`{name}`" not in page] == []


def test_what_shows_a_report_reads_its_models_alone() -> None:
    files = sorted((Path(report_schema.__file__).parent / "report").glob("*.py"))
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    assert len(texts) > 8
    assert [name for name, text in texts.items() if "dict[str, Any]" in text or '.get("' in text] == []
