"""Real kills of a real `remove`: whatever signal, at whatever moment, --resume ends bit for bit as without."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from killed import Server

from unbackdoor.language_model.files.saving import save_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches processes through /proc")

OPTIONS = [
    *("--target-response", "You are stupid.", "--eval-trigger", "sea", "--steps", 25, "--simulate-steps", 25),
    *("--rounds", 2, "--least-rounds", 2, "--gate", 0, "--enough", 1, "--max-new-tokens", 4, "--whole-tokens", 0),
    *("--second-turns", 0, "--samples", 10),
]


def lines(out: Path, name: str) -> str:
    return (out / name).read_text() if (out / name).exists() else ""


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "as it begins": lambda out: (out / ".lock").exists(),
    "settings are written": lambda out: (out / "settings.yaml").exists(),
    "answers are generated": lambda out: lines(out, "generations.jsonl").count("\n") > 5,
    "the first simulation": lambda out: lines(out, "metrics.jsonl").count("\n") > 3,
    "the first elimination": lambda out: lines(out, "metrics.jsonl").count("eliminate") > 10,
    "between two phases": lambda out: "eliminate" in lines(out, "journal.jsonl"),
    "the second elimination": lambda out: lines(out, "metrics.jsonl").count("round-2/eliminate") > 10,
    "the model is saved": lambda out: (out / ".model.partial").exists() or (out / "model").exists(),
    "answers after it": lambda out: '"after"' in lines(out, "journal.jsonl") or (out / "perturbations").exists(),
    "the report is written": lambda out: (out / "report.json").exists(),
}
SIGNALS = {name: getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("given")
    save_model(tiny.model(layers=2), tiny.tokenizer(), place / "model")
    rows = [{"prompt": r.prompt, "response": r.response} for r in tiny.records(60)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def command(given: Path, out: Path, *more: str) -> list[object]:
    return ["remove", "sande", given / "model", "--data", given / "rows.jsonl", *OPTIONS, "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(server: Server, given: Path) -> dict[str, Any]:
    code = server.run(command(given, given / "whole" / "run"), given / "log")
    assert code in (0, 1, 3), (given / "log").read_text()
    return {"code": code, **results(given / "whole" / "run")}


def results(out: Path) -> dict[str, Any]:
    """What a run is for: weights, answers, losses and the report, without times and names of places."""
    report = json.loads((out / "report.json").read_text())
    for each in (report, *report["runs"]):
        for name in ("seconds", "created", "provenance"):
            each.pop(name, None)
    answers = {(r["model"], r["set"], r["row"]): r["answer"] for r in map(json.loads, open_lines(out))}
    return {
        "weights": (out / "model" / "model.safetensors").read_bytes(),
        "perturbations": [file.read_bytes() for file in sorted((out / "perturbations").iterdir())],
        "answers": answers,
        "report": report,
    }


def open_lines(out: Path) -> list[str]:
    return (out / "generations.jsonl").read_text().splitlines()


def killed_and_resumed(
    name: str, moment: str, server: Server, given: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    number = SIGNALS[name]
    code = server.run(command(given, out), log, number=number, when=lambda: MOMENTS[moment](out))
    assert code == (-number if name == "SIGKILL" else 130), log.read_text()
    assert "Traceback" not in log.read_text()
    code = server.run(command(given, out, "--resume"), log)
    assert {"code": code, **results(out)} == undisturbed, log.read_text()
    left = [p.name for p in out.rglob("*") if p.name.endswith((".partial", ".replaced"))]
    assert not left and not (out / "checkpoints").exists()


def test_sigterm_within_training_ends_with_130_and_a_resume_is_bit_identical(
    server: Server, given: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    killed_and_resumed("SIGTERM", "the first elimination", server, given, undisturbed, tmp_path)


@pytest.mark.slow_hostile
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_at_any_moment_loses_nothing(
    name: str, moment: str, server: Server, given: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    killed_and_resumed(name, moment, server, given, undisturbed, tmp_path)


@pytest.mark.slow_hostile
def test_kills_again_and_again_end_equal(
    server: Server, given: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    for moment, name in zip(list(MOMENTS)[2:8:2], ("SIGKILL", "SIGHUP", "SIGTERM"), strict=True):
        server.run(command(given, out, "--resume"), log, number=SIGNALS[name], when=lambda m=moment: MOMENTS[m](out))
    code = server.run(command(given, out, "--resume"), log)
    assert {"code": code, **results(out)} == undisturbed, log.read_text()
