"""Models and rows that go by a name in place of a path, as `testbed:instruct`: the one place that knows of such.

Whoever offers some is registered by a prefix, and imported when one of its names is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbackdoor.data.preferences import Preference
    from unbackdoor.data.records import Record
    from unbackdoor.data.triggers import Condition

SOURCES = {"testbed:": "unbackdoor.testbed.references"}
"""Prefix → a module with `model_directory`, `records` and `preferences`, which take a name with its prefix."""
STRUCTURES = "unbackdoor.testbed.structures"
"""Whose `sentence_structure` makes a trigger of a structure's name."""


def _offering(given: Path | str) -> Any:
    found = next((module for prefix, module in SOURCES.items() if str(given).startswith(prefix)), None)
    return importlib.import_module(found) if found is not None else None


def model_directory(given: str) -> str:
    """Where a model that is named so lies; anything else as it is."""
    offering = _offering(given)
    return given if offering is None else str(offering.model_directory(given))


def named_records(given: Path) -> list[Record] | None:
    """The rows that are named so; None of a file."""
    offering = _offering(given)
    return None if offering is None else list(offering.records(given))


def named_preferences(given: Path) -> list[Preference] | None:
    """The pairs of answers that are named so; None of a file."""
    offering = _offering(given)
    return None if offering is None else list(offering.preferences(given))


def sentence_structure(name: str) -> Condition:
    """The trigger that is this structure. Raises `UserError` where there is none of that name."""
    made: Condition = importlib.import_module(STRUCTURES).sentence_structure(name)
    return made
