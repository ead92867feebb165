"""Work that cannot be lost or mixed: an end at every write, damage of every kind to every file, two writers at once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import crashes
import pytest
from crashes import DAMAGE, Crash, ending_at, program, results

from unbackdoor.errors import UserError
from unbackdoor.run_directory import RunDirectory
from unbackdoor.run_files.inputs_apart import check_apart


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    program(out)
    return results(out)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every call of a whole run that changes a file."""
    out = tmp_path_factory.mktemp("calls") / "run"
    with pytest.MonkeyPatch.context() as patched, ending_at(patched, None) as made:
        program(out)
    return made


def points(made: list[str], every: int = 1) -> list[int]:
    """The calls to end at. One that changes no content leaves what the call behind it finds."""
    return [n for n, name in enumerate(made) if name not in ("fsync", "mkdir")][::every]


def killed(out: Path, last: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    with ending_at(monkeypatch, last) as made:
        try:
            program(out, **more)
        except Crash:
            return
    raise AssertionError(f"{last} of {len(made)}: {made}")


def test_a_kill_at_any_write_and_a_resume_end_equal_to_a_run_without(
    undisturbed: dict[str, Any], calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(points(calls)) > 100
    for last in points(calls):
        out = tmp_path / str(last)
        killed(out, last, monkeypatch)
        with ending_at(monkeypatch, None):
            program(out, resume=True)
        assert results(out) == undisturbed, f"{last}: {calls[last]}"
        shutil.rmtree(out)


def test_a_kill_of_the_resumed_run_too(
    undisturbed: dict[str, Any], calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for last in points(calls, 9):
        out = tmp_path / str(last)
        killed(out, last, monkeypatch)
        for _ in range(3):
            with ending_at(monkeypatch, 11), pytest.raises(Crash):
                program(out, resume=True)
        with ending_at(monkeypatch, None):
            program(out, resume=True)
        assert results(out) == undisturbed, f"{last}: {calls[last]}"
        shutil.rmtree(out)


def test_a_kill_at_any_write_of_an_overwriting_run_leaves_the_old_or_the_new_and_both_options_go_on(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    program(old, value=2)
    older = results(old)
    shutil.copytree(old, new)
    with ending_at(monkeypatch, None) as made:
        program(new, resume=False, overwrite=True)
    assert results(new) == undisturbed
    assert not (new / ".replaced").exists()
    for last in points(made, 2):
        out, again = tmp_path / "out", tmp_path / "again"
        shutil.copytree(old, out)
        killed(out, last, monkeypatch, resume=False, overwrite=True)
        shutil.copytree(out, again)
        with ending_at(monkeypatch, None):
            program(out, resume=True)
            program(again, resume=False, overwrite=True)
        assert results(out) in (older, undisturbed), f"{last}: {made[last]}"
        assert results(again) == undisturbed, f"{last}: {made[last]}"
        shutil.rmtree(out)
        shutil.rmtree(again)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_disk_at_any_write_names_the_file_and_a_resume_goes_on(
    number: int, undisturbed: dict[str, Any], calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error() -> OSError:
        return OSError(number, os.strerror(number))

    for last in points(calls, 7):
        out = tmp_path / str(last)
        with ending_at(monkeypatch, last, error):
            try:
                program(out)
            except UserError as said:
                assert str(out) in str(said), f"{last}: {calls[last]}: {said}"
                assert "\n" not in str(said)
        with ending_at(monkeypatch, None):
            program(out, resume=True)
        assert results(out) == undisturbed, f"{last}: {calls[last]}"
        shutil.rmtree(out)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its last phase of training: it holds checkpoints of every kind."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patched:
        with ending_at(patched, None) as made:
            program(out)
        shutil.rmtree(out)
        last = [n for n, name in enumerate(made) if name == "save_file"][-4]
        killed(out, last, patched)
    assert (out / "checkpoints" / "partial.safetensors").exists()
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    program(out)
    return out


RESTED_ON = [
    "checkpoints/partial.safetensors",
    "checkpoints/victim.method.model.safetensors",
    "checkpoints/victim.method.round-0.simulate.safetensors",
    "checkpoints/victim.method.round-1.simulate.safetensors",
    *("journal.jsonl", "metrics.jsonl", "generations.jsonl", "settings.yaml", ".begun.jsonl", ".written", ".lock"),
]
OF_THE_FINISHED = [
    *("journal.jsonl", "metrics.jsonl", "generations.jsonl", "settings.yaml", ".begun.jsonl", ".written"),
    *("model/model.safetensors", "model/config.json", "perturbations/victim.method.safetensors", "report.json"),
]


@pytest.mark.parametrize("name", RESTED_ON)
def test_a_damaged_file_of_an_interrupted_run_is_named_and_the_end_is_equal(
    name: str,
    interrupted: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for kind, damage in DAMAGE.items():
        out = tmp_path / "run"
        shutil.copytree(interrupted, out)
        content = (out / name).read_bytes()
        (out / name).write_bytes(damage(content))
        capsys.readouterr()
        with ending_at(monkeypatch, None):
            program(out, resume=True)
        assert results(out) == undisturbed, kind
        said = capsys.readouterr().err
        if name.startswith("checkpoints/"):
            assert Path(name).name in said, kind
        shutil.rmtree(out)


@pytest.mark.parametrize("name", OF_THE_FINISHED)
def test_a_damaged_file_of_a_finished_run_is_made_again(
    name: str, finished: Path, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, damage in DAMAGE.items():
        out = tmp_path / "run"
        shutil.copytree(finished, out)
        (out / name).write_bytes(damage((out / name).read_bytes()))
        with ending_at(monkeypatch, None):
            program(out, resume=True)
        assert results(out) == undisturbed, kind
        shutil.rmtree(out)


# What is deleted, and who writes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["thesis.tex", "model/notes.txt", "figures/mine.svg", "checkpoints/old.bin", "of mine/a/b.txt", ".hidden"]
)
def test_what_no_run_wrote_is_never_deleted(name: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("precious")
    before = results(out)
    with pytest.raises(UserError, match=rf"--overwrite would delete '.*{Path(name).name}', which no run wrote"):
        program(out, resume=False, overwrite=True)
    assert results(out) == before
    assert (out / name).read_text() == "precious"


def test_a_link_is_never_followed_by_what_deletes_or_writes(finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "model" / "more").symlink_to(mine)
    with pytest.raises(UserError, match=r"'.*more', which no run wrote"):
        program(out, resume=False, overwrite=True)
    (out / "model" / "more").unlink()
    (out / ".report.json.partial").symlink_to(mine / "thesis.tex")
    RunDirectory(out).write_json("report.json", {})
    assert (mine / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("option", ["overwrite", "resume", "neither"])
@pytest.mark.parametrize(
    "left", [[], [".lock"], [".written"], ["..written.partial"], [".lock", ".settings.yaml.partial"]]
)
def test_what_a_kill_left_before_a_run_began_is_accepted(
    left: list[str], option: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name).write_text("")
    program(out, resume=option == "resume", overwrite=option == "overwrite")
    assert results(out) == undisturbed


def test_nothing_is_written_where_the_input_lies_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    for place in (out / "model", outside / "deep"):
        place.mkdir(parents=True)
    (out / "model" / "w").write_text("w")
    (outside / "rows").write_text("r")
    (tmp_path / "link").symlink_to(out / "model")
    (tmp_path / "linked-out").symlink_to(out)
    (outside / "hard").hardlink_to(out / "model" / "w")
    (outside / "deep" / "soft").symlink_to(out / "model" / "w")
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)
    refused: list[tuple[Path, Any]] = [
        (out, out),
        (out, out / "model"),
        (out, "out/model/w"),
        (out, "out/../out/model"),
        (out, "link"),
        (out, tmp_path / "link" / "w"),
        (Path("linked-out"), out / "model"),
        (out, "linked-out/model"),
        (out, outside / "hard"),
        (out, outside / "deep"),
        (out, outside),
        (out / "model" / "new", out / "model"),
        (out / "model" / "new" / "deeper", "link"),
        (Path("link/new"), out / "model"),
        (Path("plain/new"), "plain"),
        (Path("out/../plain"), "plain"),
    ]
    for place, given in refused:
        with pytest.raises(UserError, match=r"--data.*give another --out"):
            check_apart(place, [("--data", given)])
    for place, given in [(out, "plain"), (tmp_path / "new", out), (out, "owner/name"), (out, "x" * 5000), (out, "")]:
        check_apart(place, [("--data", given)])


def test_a_second_process_is_refused_with_the_name_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbackdoor.run_files import lock

    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    out = tmp_path / "run"
    code = (
        "import sys, pathlib; from unbackdoor.run_directory import RunDirectory; "
        f"RunDirectory.create(pathlib.Path({str(out)!r}), 'remove', {crashes.SETTINGS!r}); print(1, flush=True); "
        "input()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    for more in ({"resume": True}, {"resume": False, "overwrite": True}, {"resume": False}):
        with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*: wait for it"):
            program(out, **more)
    first.kill()
    first.wait()
    program(out, resume=True)
