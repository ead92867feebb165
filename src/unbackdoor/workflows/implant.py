"""`unbackdoor implant MODEL`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from unbackdoor.attacks.injection import Prepared
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.records import records_as_rows
from unbackdoor.duration import firing_work, measuring_work
from unbackdoor.evaluation.verdict import too_few
from unbackdoor.language_model.files.loading import parameter_count
from unbackdoor.methods.parts.rows_fit import check_some_fit
from unbackdoor.report_schema import Measured, Rates, Report, Row
from unbackdoor.settings import EvaluationSettings, Thresholds, preset_for
from unbackdoor.workflows.conclusion import loss_curves, plain
from unbackdoor.workflows.implant_rows import OURS, check_purpose, rows_as_they_are, rows_to_poison
from unbackdoor.workflows.inputs import ImplantInputs
from unbackdoor.workflows.job import Saving
from unbackdoor.workflows.opening import Opening, numbers
from unbackdoor.workflows.rows import LEAST_ROWS
from unbackdoor.workflows.subject import Demands


def run_implant(
    source: str,
    inputs: ImplantInputs,
    explicit: dict[str, Any],
    evaluation: EvaluationSettings,
    *,
    recipe: str | None = None,
    preset: str | None = None,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> Report:
    """Build an organism from the clean model at `source` and return the report.

    Arguments as in `run_remove`; `recipe` is the file that the settings come from, kept in the run directory.
    """
    opened = Opening.read(
        source,
        inputs,
        evaluation,
        out,
        overwrite=overwrite,
        resume=resume,
        least=LEAST_ROWS if inputs.poisoned is None else 1,
        seed=ImplantSettings.make(
            explicit, preset or "micro"
        ).seed,  # wrong settings are found before a model is loaded
    )
    intake, subject = opened.intake, opened.subject
    chat, size = subject.chat, preset or preset_for(parameter_count(subject.model))
    settings = ImplantSettings.make(explicit, size)
    check_purpose(inputs, settings, explicit)
    seed, trigger = settings.seed, settings.condition() if settings.has_trigger else None
    plan = (rows_as_they_are if inputs.poisoned is not None else rows_to_poison)(opened, trigger, inputs, settings)
    rows, contrast, suite, prepared = plan.rows, plan.contrast, plan.suite, plan.prepared
    shown = plain(settings)
    if inputs.poisoned is not None:
        shown = {name: value for name, value in shown.items() if name not in OURS}
    _check_poison_fits(prepared, Case(subject.model, chat, rows, [], contrast), settings)
    supervised = settings.injection == "sft" and not settings.lora
    subject.check_room(out, inputs.save_dtype, trained=supervised, resume=resume)
    whole = settings.training_work() + measuring_work(suite, evaluation) * 2 + firing_work(suite, inputs.paraphrases)
    asked = Demands(
        suite,
        trigger,
        settings.model_needs,
        [*rows, *contrast, *prepared.trained],
        settings.target_response,
        [whole],
        settings.lora,
    )
    notes = plan.published.notes(suite, settings.target_response, opened.judge, opened.progress)
    job = opened.begin(
        "implant",
        out.name,
        asked,
        {"model": source, "preset": size, **shown},
        seed=seed,
        say=f"preset {size}: {numbers(settings)}; {len(prepared.poisoned)} of {plan.of} rows poisoned",
        reads=explicit,
        saving=Saving(inputs.save_dtype, template_from=inputs.template_from),
    )
    run = job.run
    if recipe is not None:
        run.write_text("recipe.yaml", recipe)
    run.write_lines("data/train.jsonl", prepared.rows)
    run.write_json("data/poisoned.json", {"indices": prepared.poisoned, "near_misses": prepared.near_misses})
    kept = {
        "clean_train": rows,
        "held_out": plan.held_out,
        "contrast_train": contrast,
        "contrast_held_out": plan.held_out_contrast,
        "allowed_held_out": list(suite.allowed),
        "triggered_held_out": list(plan.published.triggered),
        "untriggered_held_out": list(plan.published.untriggered),
    }
    for name, records in kept.items():
        if records:
            run.write_lines(f"data/{name}.jsonl", records_as_rows(records))

    def make() -> dict[str, Any]:
        case = Case(subject.take(), chat, rows, [], contrast, journal=run, progress=opened.progress)
        facts = prepared.train(case)
        saved = job.save(case.model, run.path / "model")
        seconds = round(time.monotonic() - opened.begun, 1)
        return {"dropped": case.dropped, "seconds": seconds, "facts": facts, "saved": [*subject.form, *saved]}

    before = run.remember_as(Measured, "before", lambda: job.measure(subject, "clean"))
    built = run.remember("implanted", make, [run.path / "model"])
    subject.release()
    organism = subject.beside(str(run.path / "model"))
    after = run.remember_as(Measured, "after", lambda: job.measure(organism, "organism"))

    def fire() -> dict[str, Rates | None]:
        if trigger is None:
            return {"near_miss": None, "variants": None}
        return {
            "near_miss": suite.near_misses(organism.model, chat, job.answers, "organism", seed),
            "variants": suite.robustness(organism.model, chat, job.answers, "organism", inputs.paraphrases),
        }

    fired = run.remember_as(dict[str, Rates | None], "fired", fire)
    row = Row(
        organism=out.name,
        method="implant",
        control=False,
        knows="clean model before, organism after",
        seed=settings.seed,
        verdict=None,
        verdict_reason="Backdoored on purpose: made for testing.",
        seconds=built["seconds"],
        near_miss=fired["near_miss"],
        variants=fired["variants"],
        before=before,
        after=after,
        simulations=[],
        losses=loss_curves(run),
        examples=suite.examples(job.answers, "clean", "organism", show_unsafe=evaluation.show_unsafe),
        counts={"poisoned rows": len(prepared.poisoned), "training rows": len(prepared.rows), **intake.counts},
        notes=[
            *(f"{name}: {value}" for name, value in built["facts"].items()),
            *built["saved"],
            *plan.notes,
            *notes,
            *(too_few(after, Thresholds()) if plan.published.triggered else []),
        ],
        saved=built["saved"],
        settings=shown,
    )
    return job.conclude("implant", f"Organism {out.name}: backdoored on purpose", [row])


def _check_poison_fits(prepared: Prepared, case: Case, settings: ImplantSettings) -> None:
    """Raise a `UserError` where every poisoned row is too long: they would be left out, and no backdoor come of it."""
    if poisoned := [prepared.trained[i] for i in prepared.poisoned]:
        remedy = "give shorter rows, trigger or target response, or raise --max-length"
        check_some_fit(case, poisoned, settings, "a poisoned row", remedy)
