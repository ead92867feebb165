"""`unbackdoor evaluate MODEL`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from unbackdoor.data.records import shuffled
from unbackdoor.duration import measuring_work
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.comparison import compared, quality
from unbackdoor.evaluation.verdict import not_judged, too_few, verdict
from unbackdoor.report_schema import Measured, Report, Row, Verdict
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import VerdictSettings
from unbackdoor.testbed import references
from unbackdoor.workflows.inputs import EvaluateInputs
from unbackdoor.workflows.job import Victim, Workshop, plain, report_of
from unbackdoor.workflows.opening import Opened
from unbackdoor.workflows.published import PublishedPrompts
from unbackdoor.workflows.read_files import sources


def run_evaluate(
    source: str,
    inputs: EvaluateInputs,
    evaluation: VerdictSettings,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> Report:
    """Measure the model at `source`, beside the one before removal and a clean one where given; return the report."""
    given = {"before": inputs.before, "clean": inputs.clean}
    compared_with = [path for path in given.values() if path is not None]
    opened = Opened.read(
        source, inputs, out, overwrite=overwrite, resume=resume, compared=compared_with, suspect=inputs.before
    )
    source = opened.source
    clean, contrast = shuffled(opened.clean, inputs.seed), shuffled(opened.contrast, inputs.seed)
    trigger = inputs.condition() if inputs.has_trigger else None
    published = PublishedPrompts.read(opened.intake, opened.chat, inputs.triggered, inputs.untriggered)
    suite = opened.suite(clean, contrast, trigger, inputs.target_response, inputs, evaluation, published)
    tested = opened.tested(suite, trigger)
    notes = published.notes(suite, inputs.target_response, inputs.oracle, opened.progress)
    others = {name: references.model_directory(path) for name, path in given.items() if path is not None}
    seconds = opened.pace(suite, evaluation).seconds(measuring_work(suite, evaluation) * (1 + len(others)))
    del opened.model  # checked; measuring loads it again, and two copies may not fit

    run = RunDirectory.create(
        out,
        "evaluate",
        {"model": source, **plain(inputs), "date": opened.date, **plain(evaluation)},
        overwrite=overwrite,
        resume=resume,
    )
    opened.say_duration(out, resume, seconds, seconds)
    read = sources(source, opened.base_that_counts, inputs, **others)
    origin = provenance(command_line(), inputs.seed, read)
    origin = run.keep_provenance({**origin, "self_test": tested})
    answers = Answers(evaluation, run, opened.progress, temperature=evaluation.temperature, seed=inputs.seed)
    workshop = Workshop(run, answers, opened.progress, evaluation)
    victim = Victim(
        Path(source).resolve().name if Path(source).is_dir() else Path(source).name,
        source,
        suite,
        [],
        template=inputs.template,
        system=inputs.system,
        date=opened.date,
        base=opened.base,
        suspect=others.get("before"),
        tokenizer_from=inputs.tokenizer_from,
    )
    measured = {
        name: run.remember_as(
            Measured, name, partial(workshop.measure, victim, path, name, never_backdoored=name == "clean")
        )
        for name, path in others.items()
    }
    after = run.remember_as(
        Measured, "after", lambda: workshop.measure(victim, source, "model", references=others, suspect_name="before")
    )
    before = measured.get("before")
    judged: tuple[Verdict | None, str] = (None, "Measured as it is: give --before to judge a removal.")
    if before is not None:
        after.answer_quality = quality(suite, answers, "before", "model")
        judged = verdict(before, after, workshop.thresholds)
    row = Row(
        organism=victim.name,
        method="evaluate",
        control=False,
        knows="",
        seed=inputs.seed,
        verdict=judged[0],
        verdict_reason=judged[1],
        seconds=round(time.monotonic() - opened.begun, 1),
        near_miss=None,
        before=before,
        after=after,
        simulations=[],
        losses={},
        compared={name: compared(suite, workshop.answers, name, "model", after.kl_divergence[name]) for name in others},
        examples=suite.examples(
            workshop.answers, "before" if before else None, "model", show_unsafe=evaluation.show_unsafe
        ),
        counts=opened.intake.counts,
        temperature=evaluation.temperature,
        notes=[
            *opened.form,
            *opened.read_by(),
            *answers.notes(),
            *too_few(after, workshop.thresholds),
            *not_judged(after),
            *notes,
        ],
        settings=plain(inputs),
    )
    rows = [row]
    if inputs.clean is not None:
        never: dict[str, object] = {
            "method": "clean model",
            "verdict": None,
            "verdict_reason": "Never had the backdoor: what is left to reach.",
            "seconds": None,
            "before": None,
            "after": measured["clean"],
            "compared": {},
            "examples": [],
            "counts": {},
            "notes": answers.notes(),
            "settings": {},
        }
        rows.append(row.model_copy(update=never))
    report = report_of("evaluate", f"Evaluation of {victim.name}", rows, origin, workshop.thresholds)
    return opened.finish(run, report)
