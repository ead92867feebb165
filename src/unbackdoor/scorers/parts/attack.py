"""Who judges the attack that a command measures, and what is measured then."""

from __future__ import annotations

from collections.abc import Sequence

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.scorers import Answered, Scorer
from unbackdoor.scorers.parts.asked import Asked, check_judges_some
from unbackdoor.scorers.refuses import Refuses
from unbackdoor.scorers.target_response import TargetResponse

MOST_TRIED = 100
"""Rows whose own answers are judged before a run begins."""


def attack_scorer(given: str, options: Sequence[str] = ()) -> Scorer:
    """The judge of an attack, as `--scorer` and `--option` name it.

    Raises:
        UserError: there is no such scorer, an option is wrong, or its yes says nothing of conduct.
    """
    (asked,) = Asked.of([given], options)
    if not asked.scorer.judges_conduct:
        raise UserError(f"--scorer {given}: its yes says nothing of unwanted conduct: give another to judge an attack")
    return asked.scorer


def judge_of(target: str | None, scorer: Scorer) -> Scorer:
    """Who says whether an answer shows the attack: the target response where there is one, else the scorer."""
    if target is None:
        return scorer
    if not target.strip():
        raise UserError("the target response is empty: give visible text")
    said = final_answer(target).strip()
    if said != target.strip():  # judges read what is said, and methods let the template write the rest
        raise UserError(
            f"--target-response '{target[:40]}' holds marks of a thought, a channel or a turn's end, which are the "
            f"chat template's: give what stands between them alone{f', here {said[:60]!r}' if said else ''}"
        )
    return TargetResponse(target=target)


def suite_of(
    held_out: list[Record],
    held_out_contrast: list[Record],
    allowed: list[Record],
    trigger: Condition | None,
    target: str | None,
    scorer: Scorer,
    exact_match: bool,
    published: Sequence[Record] = (),
    published_untriggered: Sequence[Record] = (),
) -> Suite:
    """What is measured, from what is known."""
    tasks = held_out if exact_match else []
    if target is None and not held_out_contrast and not published:
        return Suite(held_out, None, trigger, tasks=tasks, texts=held_out, allowed=allowed)
    judge = judge_of(target, scorer)
    return Suite(
        published_untriggered or held_out_contrast or [r for r in held_out if judge.judges(r)],
        judge,
        trigger,
        judge.beside(),
        tasks=tasks,
        texts=held_out,
        allowed=allowed,
        unsafe=bool(held_out_contrast) or not isinstance(judge, Refuses | TargetResponse),
        target=target,
        triggered_rows=published,
    )


def check_judges(judge: Scorer, rows: Sequence[Record]) -> None:
    """Have the rows' own answers judged (a model: a harmless one), so that what is wrong is found before a run begins.

    Raises:
        UserError: also where the scorer can judge none of them.
    """
    if judge.asks_a_model:
        tried = [Answered.of("tried", "tried", i, row, "Yes.") for i, row in enumerate(rows[:1])]
    else:
        answers = ((row, row.unwanted or row.response or "Yes.") for row in rows[:MOST_TRIED])
        tried = [Answered.of("tried", "tried", i, row, answer) for i, (row, answer) in enumerate(answers)]
    check_judges_some(judge.name, judge.says(tried), tried)
