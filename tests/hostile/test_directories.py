"""A model's directory comes from an attacker: whatever lies in it, nothing of it runs, and what loads is what it says.

Each case of `directories.py` is loaded by the real entries. Meanwhile unpickling, a connection and an import from the
directory fail the test, and every case has an end: the right model, or one line that says what is wrong.
"""

from __future__ import annotations

import pickle
import re
import shutil
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import directories
import pytest
import tiny
import torch
from directories import RIGHT, Hostile, mark

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.saving import save_model

CASES = [
    *directories.configs(),
    *directories.sizes(),
    *directories.json_files(),
    *directories.weights(),
    *directories.tokenizers(),
    *directories.expanding(),
]
SECONDS = 5.0
"""Of processor time that a case may take; most take a twentieth of one."""
TEXT = "Name a river, 語."


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model"
    save_model(tiny.model(layers=2), tiny.tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def logits(good: Path) -> torch.Tensor:
    return computed(load_model(good, "cpu"))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was tried that must not be: every entry fails the test."""
    tried: list[str] = []

    def forbidden(what: str) -> Any:
        def fail(*_: object, **__: object) -> Any:
            tried.append(what)
            raise OSError(what)

        return fail

    monkeypatch.setenv("UNBACKDOOR_TEST_MARK", str(tmp_path / "ran"))
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (socket.socket, "connect")):
        monkeypatch.setattr(module, name, forbidden(f"{module.__name__}.{name}"))
    monkeypatch.setattr(socket, "getaddrinfo", forbidden("getaddrinfo"))
    return tried


def computed(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(3, 20)[None]).logits
    return found


def said(load: Any, path: Path) -> tuple[Any, str]:
    """What a loader gives, and the line that it refuses with; anything else that it raises fails the test."""
    try:
        return load(path), ""
    except UserError as refused:
        line = str(refused)
        assert "\n" not in line
        assert len(line) < 900
        assert line.isprintable()
        assert not re.search("trust_remote_code|weights_only|allow_pickle|pip install -|unbackdoor-", line)
        return None, line


def on_cpu(path: Path) -> Any:
    return load_model(path, "cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:60])
def test_a_hostile_directory(
    case: Hostile,
    good: Path,
    logits: torch.Tensor,
    watched: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = Path(shutil.copytree(good, tmp_path / "given"))
    case.spoil(given)
    modules, begun = set(sys.modules), time.process_time()
    model, of_model = said(on_cpu, given)
    tokenizer, of_tokenizer = said(load_tokenizer, given)
    took = time.process_time() - begun
    assert capfd.readouterr() == ("", "")
    assert not watched
    assert not mark(given).exists()
    assert not [name for name in set(sys.modules) - modules if "evil" in name]
    assert took < SECONDS, took
    line = of_model if case.where == "model" else of_tokenizer
    if case.expected:
        assert re.search(case.expected, line), line
    if case.expected == RIGHT:
        assert not of_model
        assert not of_tokenizer
    if model is not None and not line:
        assert torch.equal(computed(model), logits)
    if tokenizer is not None and not of_tokenizer:
        assert tokenizer(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]


def test_there_are_enough_of_them() -> None:
    """As many as were tried by hand, and each once."""
    assert len(CASES) >= 170
    assert not [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
