"""Tell a person what is happening and how long is left, on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, TextIO

from rich.cells import cell_len

from unbackdoor.screen import columns, cut, hanging, put
from unbackdoor.visible_text import one_line


class Progress:
    """Stages with an estimate of the time left.

    Args:
        plan: expected relative cost of every stage, in order; None where it is not known beforehand (then the time left
            is that of the current stage).
        stream: where to write; None stays silent.
        every: seconds between lines where the stream is not a terminal.
        label: stands before every line; a process that shares its terminal with others has one, and writes whole lines.
    """

    def __init__(
        self,
        plan: Mapping[str, float] | None = None,
        stream: TextIO | None = None,
        every: float = 10.0,
        label: str = "",
    ) -> None:
        self.plan = dict(plan or {})
        self.stream = stream
        self.every = every
        self.label = f"{label or self._process_label} · " if label or self._process_label else ""
        self._started = time.monotonic()
        self._done = 0.0
        self._last_line = 0.0
        self._current = ""
        self._terminal = bool(stream and stream.isatty())
        self._live = self._terminal and not self.label

    _process_label: ClassVar[str] = ""

    @classmethod
    def label_process(cls, label: str) -> None:
        """Give every later Progress of this process a label, unless it has one of its own."""
        cls._process_label = label

    @classmethod
    def on_stderr(cls, plan: Mapping[str, float] | None = None, label: str = "") -> Progress:
        """Progress as the command line shows it."""
        return cls(plan, sys.stderr, label=label)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One planned stage. Stages may be skipped, but not nested."""
        self._current = name
        begun = time.monotonic()
        self._write(name, 0.0, begun, force=True)
        yield
        self._done += self.plan.get(name, 0.0)
        self._current = ""

    @contextlib.contextmanager
    def task(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A counted piece of work inside a stage. Yields the function that advances it by so many units."""
        begun = time.monotonic()
        done = 0

        def advance(units: int = 1) -> None:
            nonlocal done
            done += units
            self._write(what, done / max(total, 1), begun, count=f" {done}/{total}")

        yield advance

    def note(self, message: str) -> None:
        """One line that stays on the screen."""
        if self.stream is not None:
            line = one_line(f"{self.label}{message}")
            put(hanging(line, columns(self.stream)) if self._terminal else line, self.stream, over=self._live)

    def _write(self, what: str, share: float, begun: float, count: str = "", force: bool = False) -> None:
        if self.stream is None:
            return
        now = time.monotonic()
        pause = 0.2 if self._live else self.every
        if not force and now - self._last_line < pause:
            return
        self._last_line = now
        stage = f"{self._current}: {what}" if self._current and what != self._current else what
        said, figures = (
            one_line(f"[{_clock(now - self._started)}] {self.label}{stage}"),
            count + self._left(share, now, begun),
        )
        if self._terminal:
            # One line of the screen, or the next could not overwrite it. The name is cut, not the count or the time
            # left; in the last column some terminals go on to the next line.
            room = columns(self.stream) - 1
            said = cut(said, max(room - len(figures), room // 3))
            figures = cut(figures, room - cell_len(said))
        put(f"{said}{figures}", self.stream, end="" if self._live else "\n", over=self._live)

    def _left(self, share: float, now: float, begun: float) -> str:
        total = sum(self.plan.values())
        if total and self._done:
            done = self._done
            return f" · about {_clock((now - self._started) * (total - done) / done)} left"
        if share > 0.02:
            return f" · about {_clock((now - begun) * (1 - share) / share)} left in this step"
        return ""


SILENT = Progress()
"""Says nothing: the default of the library."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
