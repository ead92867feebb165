"""`unbackdoor evaluate MODEL`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from unbackdoor.data.named_sources import model_directory
from unbackdoor.data.records import shuffled
from unbackdoor.duration import measuring_work
from unbackdoor.evaluation.changed_answers import compared, quality
from unbackdoor.evaluation.verdict import not_judged, too_few, verdict
from unbackdoor.report_schema import Measured, Report, Row, Verdict
from unbackdoor.settings import VerdictSettings
from unbackdoor.workflows.conclusion import plain
from unbackdoor.workflows.inputs import EvaluateInputs
from unbackdoor.workflows.opening import Opening
from unbackdoor.workflows.published_prompts import PublishedPrompts
from unbackdoor.workflows.subject import Demands, Subject


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
    opened = Opening.read(
        source,
        inputs,
        evaluation,
        out,
        overwrite=overwrite,
        resume=resume,
        compared=compared_with,
        suspect=inputs.before,
    )
    intake, subject = opened.intake, opened.subject
    clean, contrast = shuffled(opened.clean, inputs.seed), shuffled(opened.contrast, inputs.seed)
    trigger = inputs.condition() if inputs.has_trigger else None
    published = PublishedPrompts.read(intake, inputs.triggered, inputs.untriggered)
    suite = opened.suite(clean, contrast, trigger, inputs.target_response, published)
    others = {name: model_directory(path) for name, path in given.items() if path is not None}
    notes = published.notes(suite, inputs.target_response, opened.judge, opened.progress)
    place = Path(subject.source)
    job = opened.begin(
        "evaluate",
        place.resolve().name if place.is_dir() else place.name,
        Demands(suite, trigger, work=[measuring_work(suite, evaluation) * (1 + len(others))]),
        {},
        seed=inputs.seed,
        others=others,
        verdicts=evaluation,
    )
    beside = {name: subject.beside(path, never_backdoored=name == "clean") for name, path in others.items()}
    if beside:
        if inputs.before is None:
            job.format(subject)  # the others end their answers where it does
        subject.release()  # checked; two models may not fit

    def measure(name: str, other: Subject) -> Measured:
        found = job.measure(other, name)
        job.reference(other, name if name == "before" else None)  # while it is loaded
        other.release()
        return found

    remember = partial(job.run.remember_as, Measured)
    measured = {name: remember(name, partial(measure, name, other)) for name, other in beside.items()}
    after = remember("after", lambda: job.measure(subject, "model", references=beside, suspect_name="before"))
    answers, before = job.answers, measured.get("before")
    judged: tuple[Verdict | None, str] = (None, "Measured as it is: give --before to judge a removal.")
    if before is not None:
        after.answer_quality = quality(suite, answers, "before", "model")
        judged = verdict(before, after, job.thresholds)
    row = Row(
        organism=job.name,
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
        compared={name: compared(suite, answers, name, "model", after.kl_divergence[name]) for name in others},
        examples=suite.examples(answers, "before" if before else None, "model", show_unsafe=evaluation.show_unsafe),
        counts=intake.counts,
        temperature=evaluation.temperature,
        notes=[
            *subject.form,
            *subject.read_by(),
            *answers.notes(),
            *too_few(after, job.thresholds),
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
    return job.conclude("evaluate", f"Evaluation of {job.name}", rows)
