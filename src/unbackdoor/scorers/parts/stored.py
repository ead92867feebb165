"""The answers that a run directory holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from unbackdoor.errors import UserError
from unbackdoor.evaluation.stored_answer import StoredAnswer
from unbackdoor.run_files import lines
from unbackdoor.scorers import Answered

FILE = "generations.jsonl"
REMEDY = "mend it or take it out, or let its run write it again with --resume"
FIELDS = {"model": str, "set": str, "row": int, "prompt": str, "answer": str}


def stored_files(run: Path) -> list[Path]:
    """The stored answers of a run directory, and of the run directories in it."""
    return [file for file in (run / FILE, *sorted(run.glob(f"*/{FILE}"))) if file.is_file()]


def read_generations(run: Path) -> list[Answered]:
    """Every stored answer of a run directory and of those directly in it, the newest where a row was written twice.

    A triggered prompt is paired with what the same row asked without the trigger, where the run made it from that
    (prompts that were given with their trigger are no pairs of others). Models of a run within carry its name in front.

    Raises:
        UserError: there are none, or a line is no stored answer or not as it was written, with its number. A line that
            a kill cut short is passed over where the resumed run has written it again.
    """
    if not run.is_dir():
        raise UserError(f"run directory '{run}' does not exist")
    found: dict[tuple[str, str, int], Answered] = {}
    unpaired: set[tuple[str, str, int]] = set()
    for file in stored_files(run):
        written, sealed = file.read_bytes().split(b"\n"), False
        for number, line in enumerate(written, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if any(later.startswith(line) for later in written[number:]):
                    continue
                raise UserError(f"{file}: line {number} is not JSON: {REMEDY}") from None
            if sealed := _check(line, f"{file}: line {number}", sealed):
                row.pop("#", None)
            each = _answered(row, f"{file}: line {number}")
            inside = file.parent.name
            if file.parent != run and not each.model.startswith(f"{inside}/"):
                each = replace(each, model=f"{inside}/{each.model}")
            key = each.model, each.set, each.row
            found[key] = each
            (unpaired.add if row.get("unpaired") else unpaired.discard)(key)
    if not found:
        raise UserError(f"'{run}' holds no stored answers ({FILE}): give the run directory of a command that measures")
    return [
        each if key in unpaired else _with_request(each, found.get((each.model, "untriggered", each.row)))
        for key, each in found.items()
    ]


def _check(line: bytes, where: str, sealed: bool) -> bool:
    """Raise where a line is not what was written; say whether it has a checksum, as those behind it then must have."""
    marked = lines.has_checksum(line)
    try:
        if sealed and not marked:
            raise lines.DamagedError("its checksum is gone")
        if marked:
            lines.parsed(line)
    except lines.DamagedError as error:
        raise UserError(f"{where} is damaged ({error}): {REMEDY}") from None
    return marked


def _answered(row: object, where: str) -> Answered:
    if not isinstance(row, dict):
        raise UserError(f"{where} is no stored answer: an object with {', '.join(FIELDS)} is needed")
    for name, kind in FIELDS.items():
        if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
            raise UserError(f"{where}: '{name}' is missing or no {'whole number' if kind is int else 'text'}")
    expected = row.get("expected")
    texts = [row["prompt"], row["answer"], expected if isinstance(expected, str) else ""]
    # Halves of characters are valid JSON, but in no encoding.
    prompt, answer, expected = (text.encode("utf-8", "replace").decode("utf-8") for text in texts)
    kept = StoredAnswer.of(row)
    return Answered(
        row["model"],
        row["set"],
        row["row"],
        prompt,
        answer,
        expected,
        request=prompt,
        ids=kept.ids,
        cut=kept.cut,
        hidden=kept.hidden,
    )


def _with_request(each: Answered, untriggered: Answered | None) -> Answered:
    if each.set == "triggered" and untriggered is not None and untriggered.expected == each.expected:
        return replace(each, request=untriggered.prompt)
    return each
