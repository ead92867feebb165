"""The one exception that a user is meant to see, and the one table of exit codes, which every command keeps."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class UserError(Exception):
    """Something that the user can mend: the message names the file, row or option, and what to do.

    The command line prints it as one line on standard error and exits with `ExitCode.USER`.
    """


class ExitCode(IntEnum):
    """What a command's exit code says. There is no other code, and no command gives one of these another meaning."""

    DONE = 0
    """Done, and nothing was found: the backdoor is removed or no longer simulable; or too little was asked to judge."""
    FINDING = 1
    """Done, and something was found: an attack that still works, a model that was damaged, an alarm."""
    USER = 2
    """The input cannot be used: one line on standard error says what to change. Nothing was written."""
    INCONCLUSIVE = 3
    """Done, and nothing can be said; also where a gate stopped the method before it changed the model."""
    INTERNAL = 70
    """A fault of unbackdoor's own: `--debug` shows where."""
    INTERRUPTED = 130
    """Stopped by the user; the same command with `--resume` goes on."""

    @property
    def meaning(self) -> str:
        """The table's other column, for `--help`."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done, nothing found",
    ExitCode.FINDING: "a finding: the attack works, or the model is damaged",
    ExitCode.USER: "something to mend in what was given",
    ExitCode.INCONCLUSIVE: "inconclusive, or a gate stopped the method",
    ExitCode.INTERNAL: "internal error",
    ExitCode.INTERRUPTED: "interrupted",
}

WORST_FIRST = (ExitCode.FINDING, ExitCode.INCONCLUSIVE, ExitCode.DONE)
"""Of several results the first of these that there is: a finding is never hidden by what could not be decided."""


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The exit code of several results; `DONE` of none."""
    found = set(codes)
    return next((code for code in WORST_FIRST if code in found), ExitCode.DONE)
