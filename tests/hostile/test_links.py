"""Links in a run directory: what is written or deleted there must not be what they lead to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from crashes import program, results

from unbackdoor.errors import UserError
from unbackdoor.run_files import lock

FOLDERS = ("checkpoints", "data", "perturbations", "figures", ".replaced", "model/more")
FILES = ("journal.jsonl", "metrics.jsonl", "generations.jsonl", ".written", "settings.yaml", "data/train.jsonl")
NAMES = ("a.safetensors", "train.jsonl", ".written", "settings.yaml", "config.json")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    program(tmp_path / "run")
    lock.let_go(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    for name in NAMES:
        (tmp_path / "mine" / name).write_text("mine")
    return tmp_path / "mine"


def untouched(mine: Path) -> bool:
    return {file.name: file.read_text() for file in mine.iterdir()} == dict.fromkeys(NAMES, "mine")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_what_a_link_leads_to_is_left_alone(name: str, overwrite: bool, out: Path, mine: Path) -> None:
    place = out / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(mine if name in FOLDERS else mine / "train.jsonl")
    with pytest.raises(UserError, match=r"is a link|no run wr"):
        program(out, resume=not overwrite, overwrite=overwrite)
    assert untouched(mine)


@pytest.mark.parametrize("name", FILES)
def test_a_second_name_of_a_file_keeps_what_it_holds(name: str, out: Path, tmp_path: Path) -> None:
    """As backups by hard links have it: what is appended stays in the run directory."""
    before = results(out)
    os.link(out / name, tmp_path / "backup")
    held = (tmp_path / "backup").read_bytes()
    (out / "journal.jsonl").write_bytes(b"") if name != "journal.jsonl" else None
    program(out)
    assert (tmp_path / "backup").read_bytes() == held
    assert results(out)["losses"] == before["losses"]
