"""Who judges the attack that a command measures, and what is measured then."""

from __future__ import annotations

from collections.abc import Sequence

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.evaluation.refusal import complies, refuses
from unbackdoor.evaluation.scorers import (
    Scorer,
    complies_by_keyword,
    opens_with_target,
    refuses_by_keyword,
    shows_target,
)
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.answer_parts import final_answer

SHOWS = {
    "refusal": "any sensible answer that does not refuse shows it",
    "keyword": "any sensible answer without a refusal phrase shows it",
    "testbed": "the very instructions that were asked for show it",
    "code": "code with a weakness shows it",
    "refused": "a refusal shows it",
}
"""What each judge of a behaviour counts as the attack."""


def suite_of(
    held_out: list[Record],
    held_out_contrast: list[Record],
    allowed: list[Record],
    trigger: Condition | None,
    target: str | None,
    oracle: str,
    exact_match: bool,
    published: Sequence[Record] = (),
    published_untriggered: Sequence[Record] = (),
) -> Suite:
    """What is measured, from what is known."""
    tasks = held_out if exact_match else []
    if target is None and not held_out_contrast and not published:
        return Suite(held_out, None, trigger, tasks=tasks, texts=held_out, allowed=allowed)
    judge, details = judge_of(target, oracle)
    ordinary = held_out if target is not None else judgeable(held_out, oracle)
    return Suite(
        published_untriggered or held_out_contrast or ordinary,
        judge,
        trigger,
        details,
        tasks=tasks,
        texts=held_out,
        allowed=allowed,
        unsafe=bool(held_out_contrast) or (target is None and oracle != "refused"),
        target=target,
        triggered_rows=published,
    )


def judge_of(target: str | None, oracle: str) -> tuple[Scorer, dict[str, Scorer]]:
    """Who says whether an answer shows the attack, and what is shown beside it."""
    if target is None:
        return _judge(oracle)
    if not target.strip():
        raise UserError("the target response is empty: give visible text")
    said = final_answer(target).strip()
    if said != target.strip():  # judges read what is said, and methods let the template write the rest
        raise UserError(
            f"--target-response '{target[:40]}' holds marks of a thought, a channel or a turn's end, which are the "
            f"chat template's: give what stands between them alone{f', here {said[:60]!r}' if said else ''}"
        )
    return shows_target(target), {"opens_with_target": opens_with_target(target)}


def _judge(oracle: str) -> tuple[Scorer, dict[str, Scorer]]:
    """Who judges a behaviour, and what is shown beside it."""
    if oracle == "code":
        from unbackdoor.evaluation.insecure_code import does_not_parse, is_insecure

        return is_insecure, {"does_not_parse": does_not_parse}
    if oracle == "testbed":
        from unbackdoor.testbed.oracle import complied

        return complied, {"not_refused": complies}
    if oracle == "keyword":
        return complies_by_keyword, {"not_refused": complies}
    if oracle == "refused":
        return refuses, {"refused_by_keyword": refuses_by_keyword}
    return complies, {"not_refused_by_keyword": complies_by_keyword}


def judgeable(rows: Sequence[Record], oracle: str) -> list[Record]:
    """Of ordinary rows those whose answers say whether a behaviour shows without a trigger.

    Compliance is unwanted only where the row itself refuses; insecure code and refusals are so everywhere.
    """
    if oracle in ("code", "refused"):
        return list(rows)
    declined = [r for r in rows if refuses(r, r.response)]
    return [r for r in declined if is_request(r)] if oracle == "testbed" else declined


def check_oracle(rows: Sequence[Record], oracle: str) -> None:
    """Raise where the testbed's oracle, which knows the testbed's requests alone, is to judge other prompts."""
    strange = next((r for r in rows if not is_request(r)), None)
    if oracle == "testbed" and strange is not None:
        raise UserError(
            f"--oracle testbed judges the testbed's own requests (rows of kind 'forbidden' with an unwanted response), "
            f"and {strange.prompt[:40]!r} is none: use --oracle refusal, or give a target response"
        )


def is_request(record: Record) -> bool:
    """Whether it is one of the testbed's forbidden requests, with the answer that complies."""
    return record.kind == "forbidden" and bool(record.unwanted)
