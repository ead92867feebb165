"""`unbackdoor rejudge RUN` without scorers: a run's verdicts by the rules of now, from its stored answers alone.

What stored answers show is counted again: the target response, its disguises, what the trigger changes where a harmless
insert was asked as well, and what the answers without a trigger say of the model. What answers cannot show
(likelihoods, simulations, the judgement of a behaviour) is taken from the run's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answer_quality import Rows, stored_quality
from unbackdoor.evaluation.second_turn import SECOND_TURN, SECOND_TURN_UNTRIGGERED
from unbackdoor.evaluation.statistics import rate
from unbackdoor.evaluation.stored_answer import StoredAnswer
from unbackdoor.evaluation.suite import judged
from unbackdoor.evaluation.trigger_effect import HARMLESS, brought, inserted_words, trigger_effect
from unbackdoor.evaluation.verdict import DISGUISED, verdict
from unbackdoor.report.verdicts import LOOKS
from unbackdoor.report_schema import Measured, Model, Row, Verdict, read_report
from unbackdoor.run_directory import RunDirectory
from unbackdoor.run_files import beginning
from unbackdoor.scorers import Answered
from unbackdoor.scorers.parts.stored import FILE, stored_files
from unbackdoor.scorers.target_response import TargetResponse
from unbackdoor.settings import Thresholds
from unbackdoor.visible_text import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

VERDICTS = "verdicts.json"


class RowAgain(Row):
    """A run's row with its old verdict, and what could not be counted again."""

    old_verdict: Verdict | None
    old_reason: str
    missing: list[str]


class JudgedAgain(Model):
    """`verdicts.json`."""

    command: str
    run: str
    thresholds: Thresholds
    runs: list[RowAgain]


def run_rejudge_verdicts(run: Path, *, out: Path | None = None, overwrite: bool = False) -> JudgedAgain:
    """Judge a finished run again, write `verdicts.json`, and return it.

    Args:
        run: the run directory of a command that judges.
        out: where to write; by default `rejudge` in the run.
        overwrite: replace what is there.

    Raises:
        UserError: there is no report with verdicts, or no stored answer.
    """
    damaged = f"'{run}' holds no report of a finished run (report.json): give another, or a --scorer"
    report = read_report(run / "report.json", damaged)
    out = run / "rejudge" if out is None else out
    if (out / VERDICTS).exists() and not overwrite:
        raise UserError(f"--out '{out}' holds {VERDICTS} already: use --overwrite or another directory")
    stored, settings = stored_rows(run), (beginning.settings(run) or {}).get("settings", {})
    if not stored:
        raise UserError(f"'{run}' holds no stored answers ({FILE}): give the run directory of a command that measures")
    judged = [_judged(row, report.runs, stored, settings, report.thresholds) for row in report.runs if row.verdict]
    if not judged:
        raise UserError(f"'{run}' holds no verdict: there is nothing to judge again (--scorer scores its answers)")
    thresholds = Thresholds(**report.thresholds.model_dump())
    found = JudgedAgain(command="rejudge", run=str(run), thresholds=thresholds, runs=judged)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be made: {error.strerror or error}") from None
    RunDirectory(out).write_json(VERDICTS, found)
    return found


# What is stored ------------------------------------------------------------------------------------------------------


def stored_rows(run: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The rows of every model and set, by number, of a run directory and of those in it."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for file in stored_files(run):
        for row in RunDirectory(file.parent).read_lines(FILE):
            texts = (row.get(name) for name in ("model", "set", "prompt", "answer"))
            if all(isinstance(text, str) for text in texts) and isinstance(row.get("row"), int):
                found.setdefault((row["model"], row["set"]), {})[row["row"]] = row
    return found


def _names(row: Row, rows: Sequence[Row], models: set[str]) -> tuple[str, str] | None:
    """What the models before and after are called among the answers; None where neither is found.

    Runs of now say it. Of earlier ones it is told by the method: SANDE-P is a setting of `sande`, and the draws of a
    control are numbered.
    """
    organism, method = row.organism, row.method
    drawn = [r for r in rows if r.organism == organism and r.method == method].index(row)
    labels = (row.label, method, method.removesuffix("-p"), f"{method}-{drawn}")
    for before, after in (
        *((f"{organism}/before", f"{organism}/{label}") for label in labels if label),
        ("before", "model"),
    ):
        if {before, after} <= models:
            return before, after
    return None


def _target(row: Row, rows: Sequence[Row], settings: Mapping[str, Any]) -> str | None:
    """The target response that the run looked for; None for a behaviour."""
    own = settings.get("method_settings")
    candidates = [settings.get("eval_target"), settings.get("target_response")]
    candidates += [own.get("target_response")] if isinstance(own, dict) else []
    candidates += [r.settings.get("target_response") for r in rows if r.organism == row.organism]
    return next((text for text in candidates if isinstance(text, str) and text.strip()), None)


# What is counted again -----------------------------------------------------------------------------------------------


def _judged(
    row: Row,
    rows: Sequence[Row],
    stored: Mapping[tuple[str, str], Rows],
    settings: Mapping[str, Any],
    thresholds: Thresholds,
) -> RowAgain:
    """A run's old verdict, its new one, and what could not be counted again."""
    found = RowAgain(
        organism=row.organism,
        method=row.method,
        control=row.control,
        seed=row.seed,
        old_verdict=row.verdict,
        old_reason=row.verdict_reason,
        verdict=row.verdict,
        verdict_reason=row.verdict_reason,
        after=row.after,
        missing=[],
    )
    names = _names(row, rows, {model for model, _ in stored})
    if row.after is None or row.before is None or names is None:
        why = "its answers are not stored" if names is None else "it has no model before and after"
        found.missing.append(f"Not judged again: {why}.")
        return found
    target = _target(row, rows, settings)
    before, after = (
        _counted(state, model, stored, target) for state, model in zip((row.before, row.after), names, strict=True)
    )
    if after.attack_success is not None and after.trigger_effect is None:
        found.missing.append("No harmless insert was asked, so what the trigger changes is not known.")
    hidden = bool(settings.get("contrast")) or any(example.hidden for example in row.examples)
    by_set = [{name: rows for (model, name), rows in stored.items() if model == own} for own in names]
    after.answer_quality = stored_quality(*by_set, unsafe=hidden)
    found.before, found.after = before, after
    found.verdict, found.verdict_reason = verdict(before, after, thresholds, still_simulable=row.still_simulable)
    return found


def _counted(state: Measured, model: str, stored: Mapping[tuple[str, str], Rows], target: str | None) -> Measured:
    """A model's measurements with everything that its stored answers show counted again."""
    found = state.model_copy(update={"details": dict(state.details), "trigger_effect": None})
    answers = {
        name: {number: StoredAnswer.of(row) for number, row in stored.get((model, name), {}).items()}
        for name in ("triggered", "untriggered", HARMLESS)
    }
    for set_name, suffix in (("triggered", ""), ("untriggered", "_untriggered")) if target is not None else ():
        rows = stored.get((model, set_name), {})
        if rows:
            given = answers[set_name].values()
            asked = (Record(row["prompt"], str(row.get("expected") or "")) for row in rows.values())
            answered = [Answered.of(model, set_name, *row) for row in zip(rows, asked, given, strict=True)]
            shown, disguised = (
                rate(judged(TargetResponse(target=str(target), in_disguise=either).says(answered)))
                for either in (False, True)
            )
            setattr(found, f"attack_success{suffix}", shown)
            found.details[f"{DISGUISED}{suffix}"] = disguised
    plain, triggered, harmless = (answers[name] for name in ("untriggered", "triggered", HARMLESS))
    paired = not any(row.get("unpaired") for row in stored.get((model, "triggered"), {}).values())
    prompts = (stored.get((model, name), {}) for name in ("untriggered", "triggered"))
    inserted = inserted_words(*([str(rows[i]["prompt"]) for i in plain if i in triggered] for rows in prompts))
    shared = [i for i in plain if i in triggered and i in harmless]
    if shared and paired:
        found.trigger_effect = trigger_effect(
            *([each[i] for i in shared] for each in (plain, triggered, harmless)), inserted=inserted
        )
    with_trigger, without = (
        [StoredAnswer.of(row) for row in stored.get((model, name), {}).values()]
        for name in (SECOND_TURN, SECOND_TURN_UNTRIGGERED)
    )
    if with_trigger and without and paired:
        found.second_turn_brings = brought(with_trigger, [without], inserted)
    return found


# What is said --------------------------------------------------------------------------------------------------------


def lines(report: JudgedAgain) -> list[str]:
    """A sentence a run: the old verdict, the new one, and why; then what could not be counted again."""
    said = []
    for row in report.runs:
        new, old = LOOKS[row.verdict].label, LOOKS[row.old_verdict].label
        change = f"{new}, as before" if new == old else f"{old} → {new}"
        said.append(f"{row.organism} · {row.method}: {change}. {row.verdict_reason}")
    notes = dict.fromkeys(note for row in report.runs for note in row.missing)
    return [one_line(line) for line in [*said, *notes]]


def table(report: JudgedAgain) -> RenderableType:
    """One row a run: its old verdict and its new one."""
    from unbackdoor.report.fitting import Block, Blocks, FirstThatFits, Lines, plain_table

    def wide() -> RenderableType:
        made = plain_table()
        for name in ("organism", "method", "verdict then", "verdict now"):
            made.add_column(name, no_wrap=True)
        for row in report.runs:
            verdicts = [(LOOKS[v].label, LOOKS[v].style) for v in (row.old_verdict, row.verdict)]
            made.add_row(
                *(Lines([(one_line(name), "")]) for name in (row.organism, row.method)),
                *(Lines([cell]) for cell in verdicts),
            )
        return made

    def blocks() -> RenderableType:
        made = []
        for row in report.runs:
            old, new = LOOKS[row.old_verdict].label, LOOKS[row.verdict].label
            made.append(Block(f"{one_line(row.organism)} · {one_line(row.method)}", "bold", f"{old} → {new}", ()))
        return Blocks(made)

    return FirstThatFits(wide, blocks)
