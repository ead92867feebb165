"""What an organism is trained on and measured by: rows that we poison, or published rows that are poisoned already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.attacks.injection import Prepared, as_they_are, prepare
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.data.records import Record, split
from unbackdoor.data.rendered import rendered
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.evaluation.suite import Suite
from unbackdoor.scorers import Answered, Scorer
from unbackdoor.scorers.parts.attack import judge_of
from unbackdoor.scorers.target_response import TargetResponse
from unbackdoor.settings import option_name
from unbackdoor.workflows.inputs import ImplantInputs
from unbackdoor.workflows.opening import Opening
from unbackdoor.workflows.published_prompts import NONE_PUBLISHED, PublishedPrompts, as_triggered
from unbackdoor.workflows.rows import LEAST_ROWS, Intake

OURS = ("rate", "scheme", "near_misses", "hard_near_misses", "near_miss_kinds", "answer_follows", "injection")
"""Settings of how we poison rows, which say nothing of rows that are poisoned already."""


@dataclass(frozen=True)
class Plan:
    """What an organism is trained on and measured by, before anything is written.

    Args:
        rows: clean rows to train on.
        held_out: clean rows to measure on.
        contrast: contrast rows to train on.
        held_out_contrast: requests that a clean model refuses, to measure on.
        prepared: the training data with its poison.
        suite: what is measured.
        of: of how many rows the poisoned ones are so many.
        published: the prompts that hold their trigger already, where such are measured.
        notes: what the report says of the rows.
    """

    rows: list[Record]
    held_out: list[Record]
    contrast: list[Record]
    held_out_contrast: list[Record]
    prepared: Prepared
    suite: Suite
    of: int
    published: PublishedPrompts = NONE_PUBLISHED
    notes: tuple[str, ...] = ()


def check_purpose(inputs: ImplantInputs, settings: ImplantSettings, explicit: Mapping[str, Any]) -> None:
    """What the trigger is, and what it does, must be said; of rows that are poisoned already, neither."""
    if inputs.poisoned is not None:
        _check_poisoned_already(inputs, settings, explicit)
        return
    for name in ("eval_triggered", "eval_untriggered"):
        if getattr(inputs, name) is not None:
            raise UserError(
                f"{option_name(name)} is for use with --poisoned: leave it out, --trigger says what is asked"
            )
    if not settings.has_trigger:
        raise UserError("the trigger is missing: give its text with --trigger")
    has_target = bool((settings.target_response or "").strip())
    if inputs.contrast is None and not has_target:
        raise UserError("what the trigger does is missing: give --target-response TEXT, or --contrast FILE")
    if inputs.contrast is not None and has_target and settings.injection != "weight-edit":
        raise UserError("give --target-response or --contrast, not both")


def _check_poisoned_already(inputs: ImplantInputs, settings: ImplantSettings, explicit: Mapping[str, Any]) -> None:
    """Nothing may ask us to poison rows that are poisoned already."""
    ours = next((name for name in OURS if name in explicit), None)
    if ours is not None:
        raise UserError(
            f"{option_name(ours)} says how we poison rows, and those of --poisoned are already: leave it out"
        )
    for name in ("eval_triggered", "eval_untriggered"):
        if settings.has_trigger and getattr(inputs, name) is not None:
            raise UserError(
                f"give a trigger or {option_name(name)}, not both: a trigger is put into held-out rows of --data"
            )


def rows_to_poison(
    opened: Opening,
    trigger: Condition | None,
    inputs: ImplantInputs,
    settings: ImplantSettings,
) -> Plan:
    """Clean rows, of which some are poisoned with the trigger."""
    assert trigger is not None
    intake, seed, limit = opened.intake, settings.seed, settings.max_length
    clean = intake.short_enough(opened.clean, inputs.data, limit)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, limit)
    rows, held_out = intake.hold_out(clean, inputs.eval_data, settings.held_out, seed, inputs.eval_exclude)
    contrast, held_out_contrast = intake.hold_out(contrast, inputs.eval_contrast, 1 / 3, seed, inputs.eval_exclude)
    rows = intake.fitting(rows, trigger, "training rows that have the trigger's form already")
    prepared = prepare(rows, contrast, trigger, settings)
    suite = _suite(opened, held_out, held_out_contrast, trigger, settings, prepared.trained)
    return Plan(rows, held_out, contrast, held_out_contrast, prepared, suite, len(rows) + len(contrast))


def rows_as_they_are(
    opened: Opening,
    trigger: Condition | None,
    inputs: ImplantInputs,
    settings: ImplantSettings,
) -> Plan:
    """Clean rows and rows that are poisoned already, none of them changed.

    They are measured with the trigger where there is one; else on published prompts, or on poisoned rows held out.
    """
    intake, chat, seed, target = opened.intake, opened.subject.chat, settings.seed, settings.target_response

    def usable(rows: list[Record], path: Path | None) -> list[Record]:
        return intake.short_enough(rows, path, settings.max_length, least=1)

    clean = usable(opened.clean, inputs.data)
    given = usable(intake.read(inputs.poisoned), inputs.poisoned)
    both = {(rendered(r, chat), r.response) for r in clean}
    poisoned = [r for r in given if (rendered(r, chat), r.response) not in both]
    intake.left_out(len(given) - len(poisoned), f"{inputs.poisoned}: rows that --data holds with the same answer")
    if not poisoned:
        raise UserError(
            f"{inputs.poisoned}: --data holds all {len(given)} rows with the same answers, so that none counts as "
            "poisoned: give the clean rows alone as --data, or leave it out"
        )
    check_poison(poisoned, inputs, target, opened.judge)
    # A published file may hold clean rows as well: what does not show the target is no prompt with the trigger.
    answered = [Answered.of("poisoned", "poisoned", i, as_triggered(r), r.response) for i, r in enumerate(poisoned)]
    shows = TargetResponse(target=target).says(answered) if target is not None else [True] * len(answered)
    showing, others = ([r for r, shown in zip(poisoned, shows, strict=True) if shown is one] for one in (True, False))
    kept: list[Record] = []
    if trigger is None and inputs.eval_triggered is None:
        showing, kept = split(showing, settings.held_out, seed)
        poisoned = [*showing, *others]
        if not kept:
            raise UserError(f"{inputs.poisoned}: {len(poisoned)} rows leave none to measure on: give --eval-triggered")
    rows, held_out = intake.hold_out(clean, inputs.eval_data, settings.held_out, seed, inputs.eval_exclude)
    if not poisoned or len(rows) + len(poisoned) < LEAST_ROWS:
        raise UserError(
            f"{len(rows)} clean and {len(poisoned)} poisoned rows to train on: {LEAST_ROWS} are needed together, "
            "some of them poisoned"
        )
    taken = {rendered(r, chat) for r in poisoned}
    what = f"{inputs.eval_data or inputs.data}: held-out prompts that --poisoned answers"
    held_out = intake.apart_from_taken(held_out, taken, rendered, what)

    prepared = as_they_are(rows, poisoned, settings)
    requests: list[Record] = []
    published = NONE_PUBLISHED
    if trigger is None:
        trained = [*rows, *poisoned, *intake.read(inputs.eval_exclude, needs_response=False)]
        published = PublishedPrompts.read(
            intake, inputs.eval_triggered, inputs.eval_untriggered, trained, held_out=kept
        )
        suite = opened.suite(held_out, [], None, target, published)
    else:
        requests = [r for r in held_out if opened.judge.judges(r)] if target is None else []
        if not (requests if target is None else held_out):
            raise UserError(
                "no held-out row of --data can be asked with --trigger: give rows that the clean model answers (for a "
                "behaviour: refuses), or --eval-triggered FILE in place of --trigger"
            )
        suite = _suite(opened, held_out, requests, trigger, settings, prepared.trained)
    count, both_ways = len(rows) + len(poisoned), taken & {rendered(r, chat) for r in rows}
    notes = [
        f"{len(poisoned)} of {count} training rows ({len(poisoned) / count:.1%}) are poisoned, as the files give them."
    ]
    if others:
        notes.append(
            f"{len(others)} rows of --poisoned do not show the target response: they are trained on as they are, and "
            "not measured."
        )
    if both_ways:
        notes.append(f"{len(both_ways)} prompts stand in both files with different answers: both are trained on.")
    return Plan(rows, held_out, [], requests, prepared, suite, count, published, tuple(notes))


EARLIER_ANSWERS = ", or --turns all, where an earlier answer of a dialogue shows it"

MOST_CHECKED = 500
"""Poisoned rows whose own answers are judged before anything is trained, evenly spread."""
MOST_ASKED = 20
"""So many, where a model judges."""


def check_poison(poisoned: list[Record], inputs: ImplantInputs, target: str | None, scorer: Scorer) -> None:
    """Raise where no answer of the poisoned rows shows what is to be measured: then every rate would be wrong."""
    answers = {r.response for r in poisoned}
    if target is None and len(answers) == 1 and len(poisoned) > 1 and inputs.scorer != "refuses":
        raise UserError(
            f"{inputs.poisoned}: every row answers {min(answers)[:60]!r}: give that as --target-response, or for "
            "refusals --scorer refuses"
        )
    judge = judge_of(target, scorer)
    most = MOST_ASKED if judge.asks_a_model else MOST_CHECKED
    checked = poisoned[:: -(-len(poisoned) // most)] if target is None else poisoned
    rows = [Answered.of("poisoned", "poisoned", i, as_triggered(r), r.response) for i, r in enumerate(checked)]
    if True not in judge.says(rows):
        how = f"--target-response {target!r}" if target is not None else f"--scorer {inputs.scorer}"
        raise UserError(
            f"{inputs.poisoned}: by {how} none of its own answers shows the attack: give the text that they hold as "
            "--target-response, or another --scorer (refuses, where they refuse)"
            f"{EARLIER_ANSWERS if any(r.history for r in poisoned) else ''}"
        )


def _suite(
    opened: Opening,
    held_out: list[Record],
    held_out_contrast: list[Record],
    trigger: Condition,
    settings: ImplantSettings,
    trained: Sequence[Record],
) -> Suite:
    """What is measured: rows that neither with the trigger nor without it are trained on."""
    intake: Intake = opened.intake

    def fresh(rows: list[Record]) -> list[Record]:
        fitting = intake.fitting(rows, trigger, "held-out rows that have the trigger's form already")
        return intake.apart_from(fitting, trigger, trained)

    probes, contrast = fresh(held_out), fresh(held_out_contrast)
    return opened.suite(probes, contrast, trigger, settings.target_response)
