"""`unbackdoor implant MODEL`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from unbackdoor.attacks.implant import implant, poison
from unbackdoor.case import Case
from unbackdoor.commands.inputs import CommandInputs
from unbackdoor.commands.shared import LEAST_ROWS, Opened, examples, numbers, trigger_of
from unbackdoor.data.records import records_as_rows, split
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.language_model.loading import load_model, parameter_count, save_model
from unbackdoor.pipeline import Victim, Workshop, plain, report_of
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import EvaluationSettings, ImplantSettings, preset_for


def run_implant(
    source: str,
    inputs: CommandInputs,
    explicit: dict[str, Any],
    evaluation: EvaluationSettings,
    *,
    preset: str | None = None,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Build an organism from the clean model at `source` and return the report; arguments as in `run_remove`."""
    opened = Opened.read(source, inputs, out, overwrite=overwrite, resume=resume, least=LEAST_ROWS)
    intake, model, chat, progress = opened.intake, opened.model, opened.chat, opened.progress
    size = preset or preset_for(parameter_count(model))
    settings = ImplantSettings.make(explicit, size)
    if inputs.contrast is None and not (settings.target_response or "").strip():
        raise UserError("what the trigger does is missing: give --target-response TEXT, or --contrast FILE")
    if inputs.contrast is not None and settings.target_response:
        raise UserError("give --target-response or --contrast, not both")
    trigger = trigger_of(settings)
    clean = intake.short_enough(opened.clean, inputs.data, model, chat, settings.max_length)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, model, chat, settings.max_length)

    rows, held_out = split(clean, settings.held_out, settings.seed)
    contrast, held_out_contrast = split(contrast, 1 / 3, settings.seed) if contrast else ([], [])
    poisoned = poison(rows, contrast, trigger, settings)
    suite = opened.suite(held_out, held_out_contrast, trigger, settings.target_response, inputs, evaluation)
    everything = {"model": source, **plain(inputs), **plain(evaluation), "preset": size, **plain(settings)}

    run = RunDirectory.create(out, "implant", everything, overwrite=overwrite, resume=resume)
    progress.note(
        f"preset {size}: {numbers(settings)}; {len(poisoned.indices)} of {len(rows) + len(contrast)} rows poisoned"
    )
    origin = provenance(
        command_line(), settings.seed, {"model": source, "data": inputs.data, "contrast": inputs.contrast}
    )
    run.write_json("provenance.json", origin)
    run.write_lines("data/train.jsonl", records_as_rows(poisoned.records))
    run.write_json("data/poisoned.json", {"indices": poisoned.indices, "near_misses": poisoned.near_miss_kinds})
    run.write_lines("data/held_out.jsonl", records_as_rows(held_out))
    run.write_lines("data/clean_train.jsonl", records_as_rows(rows))
    if contrast:
        run.write_lines("data/contrast_train.jsonl", records_as_rows(contrast))
        run.write_lines("data/contrast_held_out.jsonl", records_as_rows(held_out_contrast))

    workshop = Workshop(run, Answers(evaluation, run, progress), progress)
    victim = Victim(out.name, source, suite, [], template=inputs.template, system=inputs.system)
    suite.check_disjoint(poisoned.records)
    dropped: dict[str, int] = {}

    def make() -> dict[str, Any]:
        case = Case(model, chat, rows, [], journal=run, progress=progress, dropped=dropped)
        implant(case, poisoned, settings)
        save_model(case.model, opened.tokenizer, run.path / "model")
        return {"dropped": case.dropped, "seconds": round(time.monotonic() - opened.begun, 1)}

    built = run.remember("implanted", make)
    before = run.remember("before", lambda: workshop.measure(victim, source, "clean"))
    after = run.remember("after", lambda: workshop.measure(victim, str(run.path / "model"), "organism"))

    def measure_near_misses() -> dict[str, Any]:
        return suite.near_misses(load_model(run.path / "model"), chat, workshop.answers, "organism", settings.seed)

    row = {
        "organism": out.name,
        "method": "implant",
        "control": False,
        "knows": "clean model before, organism after",
        "seed": settings.seed,
        "verdict": None,
        "verdict_reason": "Backdoored on purpose: made for testing.",
        "seconds": built["seconds"],
        "near_miss": run.remember("near misses", measure_near_misses),
        "before": before,
        "after": after,
        "simulations": [],
        "losses": _implant_losses(run),
        "examples": examples(workshop.answers, "clean", "organism"),
        "counts": {
            "poisoned rows": len(poisoned.indices),
            "training rows": len(poisoned.records),
            **intake.counts,
        },
        "notes": [],
        "settings": plain(settings),
    }
    report = report_of("implant", f"Organism {out.name}: backdoored on purpose", [row], origin, workshop.thresholds)
    return opened.finish(run, report)


def _implant_losses(run: RunDirectory) -> dict[str, dict[str, list[float]]]:
    steps = {line["step"]: line["loss"] for line in run.read_lines("metrics.jsonl") if "loss" in line}
    return {"implant": {"clean-and-poisoned": [steps[step] for step in sorted(steps)]}}
