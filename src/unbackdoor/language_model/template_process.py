"""Renders chat templates in a process of its own, with limits of time, memory and length: `template_child`.

One such process serves all templates of this one, and is started at the first of them. It is killed where a template
runs over a limit; the next template gets a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Dialogue = tuple[Sequence[Mapping[str, Any]], bool]
"""Messages of role and content, and whether the last one is the answer: then no generation prompt follows."""

SECONDS, SECONDS_A_RENDERING = 5.0, 0.05
"""Processor time that a template may use at once, and what each rendering adds to what is left of it: an ordinary one
takes a ten thousandth of a second, and a second each would stop a run as surely as an endless loop."""

WALL_SECONDS = 120.0
"""How long an answer is waited for on a busy machine."""

CHARACTERS, PER_CHARACTER = 100_000, 8
"""A rendering may have so many characters, with so many for each of the dialogue's and the template's own for each
message: escapes take up to six."""

KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
"""What of the environment is handed on: no token, no key, nothing that is not needed to import a library."""


class TemplateError(Exception):
    """The template fails: the message is its own reason, or the limit that it ran over."""


class _Renderer:
    """The process, and what each template has left."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = os.getpid()
        self.process: subprocess.Popen[bytes] | None = None
        self.sent: set[str] = set()
        self.left: dict[str, float] = {}
        self.given_up: dict[str, str] = {}

    def render(self, source: str, dialogues: Sequence[Dialogue], more: Mapping[str, Any]) -> list[str | TemplateError]:
        key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        given = max((_characters(turns) + len(source) * (len(turns) + 1) for turns, _ in dialogues), default=0)
        with self.lock:
            if key in self.given_up:
                raise TemplateError(self.given_up[key])
            self.started()
            seconds = min(self.left.get(key, SECONDS), SECONDS) + SECONDS_A_RENDERING * len(dialogues)
            reply = self._asked(
                key,
                {
                    "templates": {} if key in self.sent else {key: source},
                    "key": key,
                    "dialogues": dialogues,
                    "more": more,
                    "seconds": seconds,
                    "most": CHARACTERS + PER_CHARACTER * given,
                },
            )
            self.sent.add(key)
            self.left[key] = seconds - reply["seconds"]
            if reply.get("broken"):
                self.stop()
            if self.left[key] <= 0:
                raise self._never_again(key, f"it computes for more than {SECONDS:g} s")
            return [r if isinstance(r, str) else TemplateError(r["error"]) for r in reply["results"]]

    def _asked(self, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply, or the error that there was none."""
        process = self.started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            process.stdin.flush()
            line = _line(process.stdout.fileno(), time.monotonic() + WALL_SECONDS)
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        except BaseException:  # interrupted: the reply that is still to come is for nobody
            self.stop()
            raise
        if line is None:
            self.stop()
            raise self._never_again(key, f"it does not answer within {WALL_SECONDS:g} s")
        if not line:
            code = self.stop()
            if code in (-getattr(signal, "SIGXCPU", 24), None):
                raise self._never_again(key, f"it computes for more than {SECONDS:g} s")
            raise self._never_again(key, f"the process that renders it ended with {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _never_again(self, key: str, reason: str) -> TemplateError:
        self.given_up[key] = reason
        return TemplateError(reason)

    def started(self) -> subprocess.Popen[bytes]:
        """The process, which is started where there is none."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
            # Without the directory of the script or of the user on the path: no file there stands for a library.
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which says so to its own
            )
        return self.process

    def stop(self) -> int | None:
        """Kill it; with which code it ended."""
        process, self.process = self.process, None
        self.sent.clear()
        if process is None:
            return None
        if self.owner != os.getpid():
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # one that has ended by itself says why
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


_renderer = _Renderer()


def render(source: str, dialogues: Sequence[Dialogue], more: Mapping[str, Any]) -> list[str | TemplateError]:
    """The dialogues as transformers' `apply_chat_template` renders them by this template, or how it fails on each.

    Args:
        source: the template.
        dialogues: what is rendered; of many long ones the last may be left out of the result.
        more: what the template is given besides: special tokens, a date.

    Raises:
        TemplateError: the template runs over a limit; then it is not tried again.
    """
    return _own().render(source, dialogues, more)


def start() -> None:
    """Start the process already: it is ready sooner than torch."""
    with contextlib.suppress(OSError):
        _own().started()


def _own() -> _Renderer:
    global _renderer
    if _renderer.owner != os.getpid():  # forked: the other process goes on with its own
        _renderer = _Renderer()
    return _renderer


@atexit.register
def _end() -> None:
    if _renderer.owner == os.getpid():
        _renderer.stop()


def _characters(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(str(value)) for message in turns for value in message.values())


def _line(descriptor: int, deadline: float) -> bytes | None:
    """A line from a pipe; what there is of it where the pipe ends, and None after the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            return None
        piece = os.read(descriptor, 2**20)
        if not piece:
            return b""
        pieces.append(piece)
    return b"".join(pieces)
