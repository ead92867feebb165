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
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.verdict import too_few
from unbackdoor.language_model.loading import load_model, parameter_count
from unbackdoor.language_model.model_source import ModelSource
from unbackdoor.language_model.replacements import Replacements
from unbackdoor.language_model.saving import save_model
from unbackdoor.methods.rows_fit import check_some_fit
from unbackdoor.recipes.recipe import Recipe
from unbackdoor.report_schema import Measured, Rates, Report, Row
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import EvaluationSettings, Thresholds, preset_for
from unbackdoor.workflows.implant_rows import OURS, check_purpose, rows_as_they_are, rows_to_poison
from unbackdoor.workflows.inputs import ImplantInputs
from unbackdoor.workflows.job import Victim, Workshop, loss_curves, plain, report_of
from unbackdoor.workflows.opening import Opened, numbers
from unbackdoor.workflows.read_files import sources
from unbackdoor.workflows.rows import LEAST_ROWS


def run_implant(
    source: str,
    inputs: ImplantInputs,
    explicit: dict[str, Any],
    evaluation: EvaluationSettings,
    *,
    recipe: Recipe | None = None,
    preset: str | None = None,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> Report:
    """Build an organism from the clean model at `source` and return the report.

    Arguments as in `run_remove`; `recipe` is where the settings come from, kept in the run directory.
    """
    opened = Opened.read(
        source,
        inputs,
        out,
        overwrite=overwrite,
        resume=resume,
        least=LEAST_ROWS if inputs.poisoned is None else 1,
        seed=ImplantSettings.make(
            explicit, preset or "micro"
        ).seed,  # wrong settings are found before a model is loaded
    )
    intake, model, chat, progress = opened.intake, opened.model, opened.chat, opened.progress
    size = preset or preset_for(parameter_count(model))
    settings = ImplantSettings.make(explicit, size)
    check_purpose(inputs, settings, explicit)
    seed, trigger = settings.seed, settings.condition() if settings.has_trigger else None
    plan = (rows_as_they_are if inputs.poisoned is not None else rows_to_poison)(
        opened, trigger, inputs, settings, evaluation
    )
    rows, contrast, suite, prepared = plan.rows, plan.contrast, plan.suite, plan.prepared
    trained = [*rows, *contrast, *prepared.trained]
    tested = opened.tested(suite, trigger, settings.model_needs, trained=trained, target=settings.target_response)
    whole = settings.training_work() + measuring_work(suite, evaluation) * 2 + firing_work(suite, inputs.paraphrases)
    seconds = opened.pace(suite, evaluation).seconds(whole, lora=settings.lora)
    notes = plan.published.notes(suite, settings.target_response, inputs.oracle, progress)
    shown = plain(settings)
    if inputs.poisoned is not None:
        shown = {name: value for name, value in shown.items() if name not in OURS}
    _check_poison_fits(prepared, Case(model, chat, rows, [], contrast), settings)
    supervised = settings.injection == "sft" and not settings.lora
    opened.check_room(out, inputs.save_dtype, trained=supervised, resume=resume)
    everything = {
        "model": source,
        **plain(inputs),
        "date": opened.date,
        **plain(evaluation),
        "preset": size,
        **shown,
    }

    run = RunDirectory.create(out, "implant", everything, overwrite=overwrite, resume=resume)
    progress.note(f"preset {size}: {numbers(settings)}; {len(prepared.poisoned)} of {plan.of} rows poisoned")
    opened.say_duration(out, resume, seconds, seconds)
    origin = provenance(command_line(), seed, sources(opened.source, opened.base_that_counts, inputs, explicit))
    origin = run.keep_provenance({**origin, "self_test": tested})
    if recipe is not None:
        run.write_text("recipe.yaml", recipe.as_yaml())
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

    workshop = Workshop(run, Answers(evaluation, run, progress), progress)
    victim = Victim(
        out.name,
        opened.source,
        suite,
        [],
        template=inputs.template,
        system=inputs.system,
        date=opened.date,
        base=opened.base,
        tokenizer_from=inputs.tokenizer_from,
    )

    def make() -> dict[str, Any]:
        case = Case(model, chat, rows, [], contrast, journal=run, progress=progress)
        facts = prepared.train(case)
        given = ModelSource.find(opened.source, opened.base)
        with run.tree(run.path / "model"):
            saved = save_model(
                case.model,
                opened.tokenizer,
                run.path / "model",
                given,
                inputs.save_dtype,
                Replacements.of(inputs.tokenizer_from, inputs.template_from),
            )
        seconds = round(time.monotonic() - opened.begun, 1)
        return {"dropped": case.dropped, "seconds": seconds, "facts": facts, "saved": [*opened.form, *saved]}

    built = run.remember("implanted", make, [run.path / "model"])
    before = run.remember_as(Measured, "before", lambda: workshop.measure(victim, opened.source, "clean"))
    after = run.remember_as(Measured, "after", lambda: workshop.measure(victim, str(run.path / "model"), "organism"))

    def fire() -> dict[str, Rates | None]:
        if trigger is None:
            return {"near_miss": None, "variants": None}
        organism = load_model(run.path / "model")
        return {
            "near_miss": suite.near_misses(organism, chat, workshop.answers, "organism", seed),
            "variants": suite.robustness(organism, chat, workshop.answers, "organism", inputs.paraphrases),
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
        examples=suite.examples(workshop.answers, "clean", "organism", show_unsafe=evaluation.show_unsafe),
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
    report = report_of("implant", f"Organism {out.name}: backdoored on purpose", [row], origin, workshop.thresholds)
    return opened.finish(run, report)


def _check_poison_fits(prepared: Prepared, case: Case, settings: ImplantSettings) -> None:
    """Raise a `UserError` where every poisoned row is too long: they would be left out, and no backdoor come of it."""
    if poisoned := [prepared.trained[i] for i in prepared.poisoned]:
        remedy = "give shorter rows, trigger or target response, or raise --max-length"
        check_some_fit(case, poisoned, settings, "a poisoned row", remedy)
