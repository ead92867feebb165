"""`unbackdoor implant MODEL`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.attacks.implant import implant, poison
from unbackdoor.case import Case
from unbackdoor.data.records import records_as_rows, split
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.loading import (
    load_model,
    load_tokenizer,
    parameter_count,
    save_model,
)
from unbackdoor.pipeline import (
    Victim,
    Workshop,
    plain,
    report_of,
    write_report,
)
from unbackdoor.progress import Progress
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import (
    EvaluationSettings,
    ImplantInputs,
    ImplantSettings,
    preset_for,
)

if TYPE_CHECKING:
    pass

from unbackdoor.commands.shared import (
    LEAST_ROWS,
    Intake,
    examples,
    numbers,
    suite_of,
    trigger_of,
)


def run_implant(
    source: str,
    inputs: ImplantInputs,
    explicit: dict[str, Any],
    evaluation: EvaluationSettings,
    *,
    preset: str | None = None,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Build an organism from the clean model at `source` and return the report; arguments as in `run_remove`."""
    begun = time.monotonic()
    progress = Progress.on_stderr()
    RunDirectory.check(out, overwrite=overwrite, resume=resume)
    intake = Intake(progress)
    clean = intake.read(inputs.data, least=LEAST_ROWS)
    contrast = intake.read(inputs.contrast, needs_unwanted=True)
    model, tokenizer = load_model(source), load_tokenizer(source)
    chat = ChatFormat.of(tokenizer, inputs.template, inputs.system)
    size = preset or preset_for(parameter_count(model))
    settings = ImplantSettings.make(explicit, size)
    if not contrast and not (settings.target_response or "").strip():
        raise UserError("what the trigger does is missing: give --target-response TEXT, or --contrast FILE")
    if contrast and settings.target_response:
        raise UserError("give --target-response or --contrast, not both")
    trigger = trigger_of(settings)
    clean = intake.short_enough(clean, inputs.data, model, chat, settings.max_length)
    contrast = intake.short_enough(contrast, inputs.contrast, model, chat, settings.max_length)

    rows, held_out = split(clean, settings.held_out, settings.seed)
    contrast, held_out_contrast = split(contrast, 1 / 3, settings.seed) if contrast else ([], [])
    poisoned = poison(rows, contrast, trigger, settings)
    suite = suite_of(
        intake.measurable(held_out, model, chat, evaluation),
        intake.measurable(held_out_contrast, model, chat, evaluation),
        trigger,
        settings.target_response,
        inputs.oracle,
        inputs.exact_match,
    )
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
        save_model(case.model, tokenizer, run.path / "model")
        return {"dropped": case.dropped, "seconds": round(time.monotonic() - begun, 1)}

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
    report["seconds"] = round(time.monotonic() - begun, 1)
    write_report(run, report)
    run.complete()
    return report


def _implant_losses(run: RunDirectory) -> dict[str, dict[str, list[float]]]:
    steps = {line["step"]: line["loss"] for line in run.read_lines("metrics.jsonl") if "loss" in line}
    return {"implant": {"clean-and-poisoned": [steps[step] for step in sorted(steps)]}}
