"""Work in several processes: results, errors, Ctrl-C, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unbackdoor.errors import UserError
from unbackdoor.parallel import in_processes


def times_ten(number: int) -> tuple[int, int]:
    if number < 0:
        raise UserError(f"--number {number}: give a positive one")
    return number * 10, os.getpid()


def test_results_come_in_order_and_one_job_stays_in_this_process() -> None:
    assert in_processes(times_ten, [(1,), (2,)], 1) == [(10, os.getpid()), (20, os.getpid())]
    found = in_processes(times_ten, [(1,), (2,), (3,)], 2)
    assert [value for value, _ in found] == [10, 20, 30]
    assert os.getpid() not in {process for _, process in found}


def test_an_error_of_one_piece_is_raised_here() -> None:
    with pytest.raises(UserError, match="--number -1"):
        in_processes(times_ten, [(1,), (-1,)], 2)


def note_time(folder: str, name: str) -> str:
    """Begin, wait a little, end; both times are kept."""
    begun = time.time()
    time.sleep(0.2)
    (Path(folder) / name).write_text(f"{begun} {time.time()}")
    return name


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_call_waits_for_what_it_needs_and_for_nothing_else(tmp_path: Path, jobs: int) -> None:
    told: list[tuple[int, str]] = []
    calls = [(str(tmp_path), name) for name in ("a", "b", "c", "d")]
    found = in_processes(
        note_time, calls, jobs, needs=[(), (0,), (), (1, 2)], done=lambda number, name: told.append((number, name))
    )
    assert found == ["a", "b", "c", "d"]
    assert sorted(told) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    times = {name: [float(t) for t in (tmp_path / name).read_text().split()] for name in found}
    assert times["b"][0] >= times["a"][1]
    assert times["d"][0] >= max(times["b"][1], times["c"][1])


def be_killed(number: int) -> None:
    if number:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="--jobs 1"):
        in_processes(be_killed, [(0,), (1,)], 2)


def wait_and_tell(folder: str, name: str) -> None:
    """Work until interrupted, and say so."""
    (Path(folder) / f"{name}.begun").write_text(str(os.getpid()))
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        (Path(folder) / f"{name}.saved").write_text("")
        raise


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_end_of_the_parent_is_an_end_of_all(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "from test_parallel import wait_and_tell; from unbackdoor.parallel import in_processes\n"
        f"calls = [({str(tmp_path)!r}, name) for name in 'abcdef']\n"
        "if __name__ == '__main__': in_processes(wait_and_tell, calls, 2)"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    workers = [int(wait_for(tmp_path / f"{name}.begun").read_text()) for name in "ab"]
    process.send_signal(how)
    process.wait(30)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert sorted(p.name for p in tmp_path.glob("*.saved")) == (["a.saved", "b.saved"] if how == signal.SIGINT else [])
    assert sorted(p.name for p in tmp_path.glob("*.begun")) == ["a.begun", "b.begun"]  # none of those that waited


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.1)
    return path


def alive(process: int) -> bool:
    """Whether it still runs; one that has ended but was not collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
