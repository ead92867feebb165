"""`unbackdoor remove METHOD MODEL`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unbackdoor.case import Case
from unbackdoor.data.named_sources import model_directory
from unbackdoor.data.records import Record
from unbackdoor.data.rendered import rendered
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import measuring_work
from unbackdoor.errors import UserError
from unbackdoor.evaluation.suite import Suite
from unbackdoor.knowledge import Fact, Knowledge, alternatives, check
from unbackdoor.language_model.files.adapter_export import check_adapter
from unbackdoor.language_model.files.loading import parameter_count
from unbackdoor.methods import method_class
from unbackdoor.methods.parts.controls import controls_of
from unbackdoor.methods.parts.method import Method
from unbackdoor.report_schema import Report
from unbackdoor.settings import VerdictSettings, preset_for
from unbackdoor.workflows.conclusion import plain
from unbackdoor.workflows.inputs import RemoveInputs
from unbackdoor.workflows.job import Saving
from unbackdoor.workflows.opening import Opening, numbers
from unbackdoor.workflows.published_prompts import PublishedPrompts
from unbackdoor.workflows.rows import LEAST_ROWS, TrainingRows
from unbackdoor.workflows.subject import Demands, Subject, name_of
from unbackdoor.workload import Work


def run_remove(
    method_name: str,
    source: str,
    inputs: RemoveInputs,
    explicit: dict[str, Any],
    evaluation: VerdictSettings,
    *,
    preset: str | None = None,
    paper: bool = False,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    known: Sequence[dict[str, Any]] = (),
) -> Report:
    """Cleanse the model at `source` and return the report.

    Args:
        method_name: a name of the registry.
        source: Hugging Face directory or `hf:owner/name`.
        inputs: data files and what is known for evaluation only.
        explicit: the method's settings that were given, by name.
        evaluation: how much is measured.
        preset: which preset fills in the rest; by the model's size where None.
        paper: the paper's own choices in place of ours.
        out: the run directory.
        overwrite: replace it.
        resume: go on with it.
        known: answers of the model at `source` that another run has, as `Answers` takes them.
    """
    chosen, explicit = method_class(method_name), _other_models(explicit)
    assumed = chosen.make(explicit, *_presets(preset or "micro", paper))  # before a model is loaded
    _check_given(assumed, inputs)
    opened = Opening.read(
        source,
        inputs,
        evaluation,
        out,
        overwrite=overwrite,
        resume=resume,
        least=LEAST_ROWS,
        seed=assumed.basis.seed,
        more=explicit,
    )
    intake, subject = opened.intake, opened.subject
    size = preset or preset_for(parameter_count(subject.model))
    method = chosen.make(explicit, *_presets(size, paper))
    settings = method.basis
    known_to_it = Knowledge.of(settings, inputs)
    own = known_to_it.condition() if known_to_it.has_trigger else None
    _check_fit(method, subject, opened.contrast, inputs)

    seed = settings.seed
    clean = intake.short_enough(opened.clean, inputs.data, settings.max_length)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, settings.max_length)
    anchors, held_out = intake.hold_out(clean, inputs.eval_data, 0.2, seed, inputs.eval_exclude)
    contrast, held_out_contrast = intake.hold_out(contrast, inputs.eval_contrast, 1 / 3, seed)
    method.check_rows(Case.of_rendered(subject.model, subject.chat, anchors, contrast, seed))
    # Given for evaluation, or known to the method itself; none where prompts hold it already.
    trigger = None if inputs.eval_triggered is not None else inputs.evaluation_trigger() or own
    target = inputs.eval_target or known_to_it.target
    published = PublishedPrompts.read(
        intake,
        inputs.eval_triggered,
        inputs.eval_untriggered,
        [
            *anchors,
            *contrast,
            *_with(own, [*anchors, *contrast]),
            *intake.read(inputs.eval_exclude, needs_response=False),
        ],
    )
    suite = opened.suite(held_out, held_out_contrast, trigger, target, published)
    measured = suite.prompts(subject.chat) | {rendered(r, subject.chat) for r in suite.triggered_rows}
    preferences = intake.preferences(inputs.preferences, settings.max_length, measured)
    pairs = [replace(pair.record(), unwanted=pair.rejected) for pair in preferences]
    trains = not settings.lora and settings.steps > 0
    subject.check_room(out, inputs.save_dtype, trained=trains, extra=int(inputs.controls), resume=resume)
    asked = Demands(
        suite,
        trigger,
        settings.model_needs,
        [*anchors, *contrast, *_with(own, anchors), *pairs],
        known_to_it.target,
        [_work(method, n, suite, evaluation, inputs.controls) for n in settings.round_range],
        settings.lora,
    )
    notes = published.notes(suite, target, opened.judge, opened.progress)
    job = opened.begin(
        f"remove {method_name}",
        name_of(subject.source),
        asked,
        {
            "method": method_name,
            "preset": size,
            "paper": paper,
            "method_settings": plain(settings),
            **({"like": str(explicit["like"])} if "like" in explicit else {}),
        },
        seed=seed,
        say=f"preset {size}{' (paper)' if paper else ''}: {numbers(settings)}",
        reads={"method": method_name, **explicit},
        verdicts=evaluation,
        known=known,
        rows=TrainingRows(anchors, contrast, preferences),
        saving=Saving(inputs.save_dtype, inputs.save_adapter, inputs.template_from),
    )
    rows = [job.row(method, model_directory=job.run.path / "model")]
    if inputs.controls and rows[0].rounds:
        finished = job.finished(method, rows[0])
        rows += [job.row(control, label=label) for label, control in controls_of(finished).items()]
    rows[0].counts |= intake.counts
    rows[0].notes += notes
    return job.conclude("remove", f"{rows[0].method} on {job.name}", rows)


def _work(method: Method, rounds: int, suite: Suite, evaluation: VerdictSettings, controls: bool) -> Work:
    """Of a removal in so many rounds and of its controls, each measured; the model is measured before as well."""
    settings = method.basis
    work = settings.training_work(rounds) + measuring_work(suite, evaluation) * 2
    if not method.control:
        work += settings.simulating_work(rounds)
    if controls:
        tuned = Work(trained=settings.steps * settings.batch_size * rounds)
        work += settings.training_work(rounds) + tuned + measuring_work(suite, evaluation) * 2
    return work


def _presets(size: str, paper: bool) -> list[str]:
    return [size, "paper"] if paper else [size]


def _other_models(explicit: dict[str, Any]) -> dict[str, Any]:
    """The settings with the testbed's models, where other models are asked for, by their directories."""
    found = dict(explicit)
    if found.get("clean_model"):
        found["clean_model"] = model_directory(found["clean_model"])
    if found.get("sibling"):
        siblings = found["sibling"]
        found["sibling"] = tuple(map(model_directory, (siblings,) if isinstance(siblings, str) else siblings))
    return found


def _check_given(method: Method, inputs: RemoveInputs) -> None:
    """What the method must be given, and what it has no use for."""
    needs = method.basis.needs
    check(method.name, needs, {*Knowledge.of(method.basis, inputs).facts, Fact.CLEAN_ROWS})
    if inputs.preferences is not None and Fact.PREFERENCES not in needs:
        raise UserError(f"--preferences is for dpo: {method.name} does not use it, leave it out")
    if inputs.save_adapter:
        if not method.basis.lora:
            raise UserError("--save-adapter needs --lora: what is trained without adapters is not of low rank")
        if method.basis.changes_all_weights:
            raise UserError(
                f"--save-adapter: {method.name} changes all weights, not by adapters alone: leave it out, the whole "
                "model is saved in any case"
            )


def _check_fit(method: Method, subject: Subject, contrast: Sequence[Record], inputs: RemoveInputs) -> None:
    """Whether the method can work on this model with what it was given, before anything is written."""
    if inputs.save_adapter:
        check_adapter(subject.model, subject.given)
    if any(Fact.BEHAVIOUR in alternatives(need) for need in method.basis.needs) and len(contrast) < LEAST_ROWS:
        raise UserError(
            f"{method.name} needs examples of the behaviour: give --contrast FILE with {LEAST_ROWS} rows or more"
        )
    method.basis.check_model(subject.model)


def _with(trigger: Condition | None, rows: Sequence[Record]) -> list[Record]:
    """What a method that is told the trigger trains on besides: the rows with it in their prompts."""
    if trigger is None:
        return []
    return [replace(r, prompt=trigger.insert(r.prompt)) for r in rows if trigger.fits(r.prompt)]
