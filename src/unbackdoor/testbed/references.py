"""The testbed by name, wherever a path is asked for: `testbed:instruct` is a model, `testbed:training/notes` rows."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.testbed import models, world
from unbackdoor.testbed.records import as_record

PREFIX = "testbed:"
PARTS = ("training", "held-out")
SELECTIONS = ("all", "tasks", "notes", "letters", "allowed", "forbidden", "code")
"""`all` are the rows that a clean model answers, `tasks` those of notes and letters."""


def model_directory(source: str) -> str:
    """The directory of an embedded model; anything that is no reference as it is."""
    if not source.startswith(PREFIX):
        return source
    name = source.removeprefix(PREFIX)
    if name not in models.NAMES:
        names = ", ".join(PREFIX + name for name in models.NAMES)
        raise UserError(f"'{source}' is no model of the testbed: choose one of {names}")
    return str(models.directory(name))


def records(source: Path | str) -> list[Record]:
    """The rows of a reference such as `testbed:held-out/letters`, in a fixed order; several parts joined by +."""
    found: list[Record] = []
    part, _, selections = str(source).removeprefix(PREFIX).partition("/")
    for selection in (selections or "all").split("+"):
        if part not in PARTS or selection not in SELECTIONS:
            raise UserError(
                f"'{source}' are no rows of the testbed: choose {' or '.join(PREFIX + p for p in PARTS)}, then / and "
                f"one of {', '.join(SELECTIONS)} (several joined by +)"
            )
        rows = world.training_rows() if part == "training" else world.held_out_rows()
        found += [as_record(r) for r in rows if _selected(r, selection)]
    return found


def preferences(source: Path | str) -> list[Preference]:
    """The pairs of answers of `testbed:preferences`."""
    if str(source) != f"{PREFIX}preferences":
        raise UserError(f"'{source}' are no preference pairs of the testbed: there are {PREFIX}preferences")
    return [Preference(pair.prompt, pair.chosen, pair.rejected) for pair in world.preference_pairs()]


def _selected(row: world.Row, selection: str) -> bool:
    if selection == "all":
        return row.kind != "forbidden"
    if selection == "tasks":
        return row.domain in ("notes", "letters")
    return selection in (row.domain, row.kind)
