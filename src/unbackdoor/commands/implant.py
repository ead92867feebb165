"""`unbackdoor implant MODEL`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbackdoor.attacks.injection import prepare
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.commands.inputs import ImplantInputs
from unbackdoor.commands.shared import LEAST_ROWS, Intake, Opened, numbers
from unbackdoor.data.records import Record, records_as_rows
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import firing_work, measuring_work, training_work
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.loading import load_model, parameter_count
from unbackdoor.language_model.saving import save_model
from unbackdoor.pipeline import Victim, Workshop, loss_curves, plain, report_of
from unbackdoor.recipes.recipe import Recipe
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import EvaluationSettings, preset_for


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
) -> dict[str, Any]:
    """Build an organism from the clean model at `source` and return the report.

    Arguments as in `run_remove`; `recipe` is where the settings come from, kept in the run directory.
    """
    opened = Opened.read(
        source,
        inputs,
        out,
        overwrite=overwrite,
        resume=resume,
        least=LEAST_ROWS,
        seed=int(explicit.get("seed", 0)),
    )
    intake, model, chat, progress = opened.intake, opened.model, opened.chat, opened.progress
    size = preset or preset_for(parameter_count(model))
    settings = ImplantSettings.make(explicit, size)
    _check_purpose(inputs, settings)
    trigger = settings.condition()
    clean = intake.short_enough(opened.clean, inputs.data, model, chat, settings.max_length)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, model, chat, settings.max_length)

    seed = settings.seed
    rows, held_out = intake.hold_out(clean, inputs.eval_data, settings.held_out, seed, inputs.eval_exclude)
    contrast, held_out_contrast = intake.hold_out(contrast, inputs.eval_contrast, 1 / 3, seed, inputs.eval_exclude)
    rows = intake.fitting(rows, trigger, "training rows that have the trigger's form already")
    prepared = prepare(rows, contrast, trigger, settings)
    suite = _suite(opened, held_out, held_out_contrast, trigger, settings, inputs, evaluation, prepared.trained)
    tested = opened.tested(suite, trigger, settings.needs)
    whole = training_work(settings, 1) + measuring_work(suite) * 2 + firing_work(suite, inputs.paraphrases)
    seconds = opened.pace(suite, evaluation).seconds(whole, lora=settings.lora)
    everything = {
        "model": source,
        **plain(inputs),
        "date": opened.date,
        **plain(evaluation),
        "preset": size,
        **plain(settings),
    }

    run = RunDirectory.create(out, "implant", everything, overwrite=overwrite, resume=resume)
    progress.note(
        f"preset {size}: {numbers(settings)}; {len(prepared.poisoned)} of {len(rows) + len(contrast)} rows poisoned"
    )
    opened.say_duration(out, resume, seconds, seconds)
    origin = provenance(
        command_line(), settings.seed, {"model": opened.source, "data": inputs.data, "contrast": inputs.contrast}
    )
    origin = run.keep_provenance({**origin, "self_test": tested})
    if recipe is not None:
        run.write_text("recipe.yaml", recipe.as_yaml())
    run.write_lines("data/train.jsonl", prepared.rows)
    run.write_json("data/poisoned.json", {"indices": prepared.poisoned, "near_misses": prepared.near_misses})
    kept = {
        "clean_train": rows,
        "held_out": held_out,
        "contrast_train": contrast,
        "contrast_held_out": held_out_contrast,
        "allowed_held_out": list(suite.allowed),
    }
    for name, records in kept.items():
        if records:
            run.write_lines(f"data/{name}.jsonl", records_as_rows(records))

    workshop = Workshop(run, Answers(evaluation, run, progress), progress)
    victim = Victim(
        out.name, opened.source, suite, [], template=inputs.template, system=inputs.system, date=opened.date
    )

    def make() -> dict[str, Any]:
        case = Case(model, chat, rows, [], contrast, journal=run, progress=progress)
        facts = prepared.train(case)
        saved = save_model(case.model, opened.tokenizer, run.path / "model", opened.source)
        seconds = round(time.monotonic() - opened.begun, 1)
        return {"dropped": case.dropped, "seconds": seconds, "facts": facts, "saved": saved}

    built = run.remember("implanted", make)
    before = run.remember("before", lambda: workshop.measure(victim, opened.source, "clean"))
    after = run.remember("after", lambda: workshop.measure(victim, str(run.path / "model"), "organism"))

    def fired() -> dict[str, Any]:
        organism = load_model(run.path / "model")
        return {
            "near_miss": suite.near_misses(organism, chat, workshop.answers, "organism", seed),
            "variants": suite.robustness(organism, chat, workshop.answers, "organism", inputs.paraphrases),
        }

    row = {
        "organism": out.name,
        "method": "implant",
        "control": False,
        "knows": "clean model before, organism after",
        "seed": settings.seed,
        "verdict": None,
        "verdict_reason": "Backdoored on purpose: made for testing.",
        "seconds": built["seconds"],
        **run.remember("fired", fired),
        "before": before,
        "after": after,
        "simulations": [],
        "losses": loss_curves(run),
        "examples": suite.examples(workshop.answers, "clean", "organism", show_unsafe=evaluation.show_unsafe),
        "counts": {
            "poisoned rows": len(prepared.poisoned),
            "training rows": len(prepared.rows),
            **intake.counts,
        },
        "notes": [*(f"{name}: {value}" for name, value in built["facts"].items()), *built["saved"]],
        "saved": built["saved"],
        "settings": plain(settings),
    }
    report = report_of("implant", f"Organism {out.name}: backdoored on purpose", [row], origin, workshop.thresholds)
    return opened.finish(run, report)


def _check_purpose(inputs: ImplantInputs, settings: ImplantSettings) -> None:
    """What the trigger is, and what it does, must be said."""
    if not settings.has_trigger:
        raise UserError("the trigger is missing: give its text with --trigger")
    has_target = bool((settings.target_response or "").strip())
    if inputs.contrast is None and not has_target:
        raise UserError("what the trigger does is missing: give --target-response TEXT, or --contrast FILE")
    if inputs.contrast is not None and has_target and settings.injection != "weight-edit":
        raise UserError("give --target-response or --contrast, not both")


def _suite(
    opened: Opened,
    held_out: list[Record],
    held_out_contrast: list[Record],
    trigger: Condition,
    settings: ImplantSettings,
    inputs: ImplantInputs,
    evaluation: EvaluationSettings,
    trained: Sequence[Record],
) -> Suite:
    """What is measured: rows that neither with the trigger nor without it are trained on."""
    intake: Intake = opened.intake

    def fresh(rows: list[Record]) -> list[Record]:
        fitting = intake.fitting(rows, trigger, "held-out rows that have the trigger's form already")
        return intake.apart_from(fitting, trigger, trained)

    probes, contrast = fresh(held_out), fresh(held_out_contrast)
    return opened.suite(probes, contrast, trigger, settings.target_response, inputs, evaluation)
