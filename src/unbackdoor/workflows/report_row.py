"""What a report says of one method on one model: its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unbackdoor.evaluation.changed_answers import compared
from unbackdoor.evaluation.verdict import not_judged, too_few, verdict
from unbackdoor.methods.parts.method import Method
from unbackdoor.methods.parts.result import Removal
from unbackdoor.report_schema import Compared, Measured, Row, Simulated
from unbackdoor.workflows.conclusion import loss_curves, plain

if TYPE_CHECKING:
    from unbackdoor.workflows.job import Job


def report_row(
    job: Job,
    method: Method,
    knew: str,
    label: str,
    removal: Removal,
    before: Measured,
    after: Measured | None,
    seconds: float,
) -> Row:
    """The report's row of a method that was run.

    Args:
        job: where it was run.
        method: with its settings.
        knew: what the defender knew.
        label: the row's name in the run directory.
        removal: what was done.
        before: the subject's measurements.
        after: the cleansed model's; None where the gate stopped it.
        seconds: that the method took.
    """
    name, reason = verdict(
        before,
        after if after is not None else before,
        job.thresholds,
        completed=removal.completed,
        still_simulable=removal.still_simulable,
    )
    budget = removal.steps_needed or 0
    earlier, later = f"{job.name}/before", f"{job.name}/{label}"
    against: dict[str, Compared] = {}
    if after is not None:
        against["before"] = compared(job.suite, job.answers, earlier, later, after.kl_divergence["before"])
    return Row(
        organism=job.name,
        method=removal.method,
        label=label,
        control=method.control,
        knows=knew,
        seed=method.basis.seed,
        verdict=name,
        verdict_reason=reason if removal.completed else removal.message,
        seconds=round(seconds, 2),
        near_miss=job.near_miss,
        before=before,
        after=after,
        rounds=removal.rounds,
        still_simulable=removal.still_simulable,
        simulations=[
            Simulated(
                when=s.when,
                target=s.target,
                success=s.at(budget) if removal.completed else s.curve[-1][1],
                at_step=budget if removal.completed else int(s.curve[-1][0]),
                curve=[(int(step), success) for step, success in s.curve],
                norm_ratio=s.norm_ratio,
            )
            for s in removal.simulations
        ],
        losses=loss_curves(job.run, later),
        compared=against,
        examples=job.suite.examples(
            job.answers,
            earlier,
            later,
            under=f"{earlier} {label}",
            show_unsafe=job.answers.settings.show_unsafe,
        ),
        counts={f"dropped: {what}": count for what, count in removal.dropped.items()},
        temperature=job.answers.temperature,
        notes=[*removal.notes, *job.answers.notes(), *too_few(after, job.thresholds), *not_judged(after)],
        settings=plain(method.basis),
    )
