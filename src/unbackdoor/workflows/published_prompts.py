"""Published poisoned data: prompts that hold their trigger already, asked and trained on as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unbackdoor.data.records import Record
from unbackdoor.data.rendered import asked, rendered

if TYPE_CHECKING:
    from unbackdoor.evaluation.suite import Suite
    from unbackdoor.progress import Progress
    from unbackdoor.scorers import Scorer
    from unbackdoor.workflows.rows import Intake


@dataclass(frozen=True)
class PublishedPrompts:
    """Prompts that are asked as they are, in place of inserting a trigger; without `triggered` there are none.

    Args:
        triggered: rows whose prompts hold the trigger.
        untriggered: rows without it; held-out rows are asked where it is empty.
    """

    triggered: Sequence[Record] = ()
    untriggered: Sequence[Record] = ()

    @classmethod
    def read(
        cls,
        intake: Intake,
        triggered: Path | None,
        untriggered: Path | None,
        trained: Sequence[Record] = (),
        held_out: Sequence[Record] = (),
    ) -> PublishedPrompts:
        """The usable prompts of two files; those that are trained on, or in both files, are dropped and counted.

        Args:
            intake: reads and counts.
            triggered: the file of those that hold the trigger.
            untriggered: the file of those that do not.
            trained: rows that are trained on.
            held_out: poisoned rows that serve where the first file is missing.

        Raises:
            UserError: no prompt of a file is left.
        """
        if triggered is None and not held_out:
            return cls()
        chat, source = intake.chat, triggered or "held-out rows of --poisoned"
        given = intake.read(triggered, needs_response=False) or list(held_out)
        plain = intake.read(untriggered, needs_response=False)
        # A trigger may stand in the system prompt alone: then the question itself is trained on, this prompt is not.
        known = {rendered(r, chat) for r in trained}
        given = intake.apart_from_taken(given, known, rendered, f"{source}: prompts that are trained on")
        known = {asked(r, chat) for r in trained}
        plain = intake.apart_from_taken(plain, known, asked, f"{untriggered}: prompts that are trained on")
        both = {rendered(r, chat) for r in given}
        what = f"{untriggered}: prompts that are given as triggered ones too"
        plain = intake.apart_from_taken(plain, both, rendered, what)
        return cls([as_triggered(r) for r in given], plain)

    def notes(self, suite: Suite, target: str | None, scorer: Scorer, progress: Progress) -> list[str]:
        """For the report, and said at once: how such prompts are measured, and what they do not allow to measure."""
        if not self.triggered:
            return []
        found = ["Near misses and variants of the trigger are not measured: no text describes it."]
        if target is None:
            found.append(
                f"The attack is judged by --scorer {scorer.name}. {scorer.meaning()} If it is a fixed text, give "
                "that as the target response."
            )
        if not suite.probes:
            found.append(
                "No rate without the trigger: no row without it could be judged. Give such prompts (--untriggered of "
                "evaluate, --eval-untriggered of the others)."
            )
        if not suite.answered_rows():
            found.append("Utility is not measured: it needs clean rows with their answers (--data).")
        for note in found:
            progress.note(note)
        return found


NONE_PUBLISHED = PublishedPrompts()


def as_triggered(record: Record) -> Record:
    """A row with the trigger in its prompt, to be measured: its answer is what the attack wants, not what is right.

    A row that says both, as a contrast row does, stays as it is.
    """
    return record if record.unwanted else replace(record, response="", unwanted=record.response or None)
