"""Ctrl-C, and what means the same: a request to end (SIGTERM) and a terminal that is gone (SIGHUP).

A signal that was ignored when the program began (`nohup`, a shell's background job) stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask for an end."""

Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[bool]:
    """While the context is open, this is called for requests to end; yields whether it can be.

    Only the main thread of a process can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {}
    for number in REQUESTS:
        now = signal.getsignal(number)
        if now not in (signal.SIG_IGN, None):
            before[number] = now
            signal.signal(number, handler)
    try:
        yield True
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def interrupt(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does by default."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def between_steps(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Hold a request to end back until a step is whole, so that its checkpoint is consistent.

    A second one of the same signal acts at once; one of another is the same request, as a scheduler sends it to a whole
    group of processes and their parent passes it on.

    Yields:
        What says whether one came.
    """
    asked: set[int] = set()

    def remember(number: int, frame: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.add(number)

    if not wanted:
        yield lambda: False
        return
    with handled_by(remember):
        yield lambda: bool(asked)
