"""`unbackdoor remove METHOD MODEL`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unbackdoor.commands.inputs import RemoveInputs
from unbackdoor.commands.intake import LEAST_ROWS
from unbackdoor.commands.published import PublishedPrompts
from unbackdoor.commands.shared import Opened, numbers
from unbackdoor.data.records import Record
from unbackdoor.data.rendered import rendered
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import Work, measuring_work, rounds_of, training_work
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.adapter_export import check_adapter
from unbackdoor.language_model.loading import parameter_count
from unbackdoor.language_model.model_source import ModelSource
from unbackdoor.pipeline import Victim, Workshop, as_fine_tuning, plain, report_of
from unbackdoor.preference import import_trl
from unbackdoor.removal import METHODS
from unbackdoor.removal.settings import (
    AverageSettings,
    BeearSettings,
    DpoSettings,
    FineMixingSettings,
    FineTuneSettings,
    LatSettings,
    MethodSettings,
    OsftSettings,
    PruneSettings,
    QuantiseSettings,
    RandomPerturbationSettings,
    SandeSettings,
    UnlearnSettings,
)
from unbackdoor.removal.weights import check_other_model
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import TriggerSettings, VerdictSettings, preset_for
from unbackdoor.testbed.references import model_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
) -> dict[str, Any]:
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
    opened = Opened.read(
        source,
        inputs,
        out,
        overwrite=overwrite,
        resume=resume,
        least=LEAST_ROWS,
        seed=_seed(method_name, explicit, preset, paper),
    )
    source = opened.source
    intake, model, chat, progress = opened.intake, opened.model, opened.chat, opened.progress
    size = preset or preset_for(parameter_count(model))
    settings, like_run = _method_settings(method_name, _other_models(explicit), size, paper)
    _check_knowledge(model, ModelSource.find(source, opened.base), settings, opened.contrast, method_name, inputs)

    seed = settings.seed
    clean = intake.short_enough(opened.clean, inputs.data, model, chat, settings.max_length)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, model, chat, settings.max_length)
    anchors, held_out = intake.hold_out(clean, inputs.eval_data, 0.2, seed, inputs.eval_exclude)
    contrast, held_out_contrast = intake.hold_out(contrast, inputs.eval_contrast, 1 / 3, seed)
    trigger = _evaluation_trigger(inputs, settings)
    target = inputs.eval_target or _known_target(settings)
    published = PublishedPrompts.read(
        intake,
        chat,
        inputs.eval_triggered,
        inputs.eval_untriggered,
        [
            *anchors,
            *contrast,
            *_with_own_trigger(settings, [*anchors, *contrast]),
            *intake.read(inputs.eval_exclude, needs_response=False),
        ],
    )
    suite = opened.suite(held_out, held_out_contrast, trigger, target, inputs, evaluation, published)
    measured = suite.prompts(chat) | {rendered(r, chat) for r in suite.triggered_rows}
    preferences = intake.preferences(inputs.preferences, model, chat, settings.max_length, measured)
    pairs = [replace(pair.record(), unwanted=pair.rejected) for pair in preferences]
    trained = [*anchors, *contrast, *_with_own_trigger(settings, anchors), *pairs]
    tested = opened.tested(suite, trigger, settings.needs, trained=trained, target=_known_target(settings))
    notes = published.notes(suite, target, inputs.oracle, progress)
    everything = {
        "method": method_name,
        "model": source,
        **plain(inputs),
        "date": opened.date,
        **plain(evaluation),
        "preset": size,
        "paper": paper,
        "method_settings": plain(settings),
        **({"like": str(like_run)} if like_run is not None else {}),
    }
    pace = opened.pace(suite, evaluation)
    del model, opened.model  # checked; the work loads it again, and two copies may not fit

    run = RunDirectory.create(out, f"remove {method_name}", everything, overwrite=overwrite, resume=resume)
    progress.note(f"preset {size}{' (paper)' if paper else ''}: {numbers(settings)}")
    work = (_work(settings, n, suite, evaluation, inputs.controls, like_run is None) for n in rounds_of(settings))
    opened.say_duration(out, resume, *(pace.seconds(w, lora=settings.lora) for w in work))
    sources: dict[str, str | Path | None] = {
        "model": source,
        "data": inputs.data,
        "contrast": inputs.contrast,
        "eval_data": inputs.eval_data,
        "eval_contrast": inputs.eval_contrast,
        "eval_triggered": inputs.eval_triggered,
        "eval_untriggered": inputs.eval_untriggered,
        "preferences": inputs.preferences,
        "base": opened.base_that_counts,
    }
    origin = provenance(command_line(), seed, sources)
    origin = run.keep_provenance({**origin, "self_test": tested})
    answers = Answers(evaluation, run, progress, temperature=evaluation.temperature, seed=seed, known=known)
    workshop = Workshop(run, answers, progress, evaluation)
    name = Path(source).parent.name if Path(source).name == "model" else Path(source).name
    victim = Victim(
        name,
        source,
        suite,
        anchors,
        contrast,
        inputs.template,
        inputs.system,
        opened.date,
        preferences=preferences,
        base=opened.base,
        save_dtype=inputs.save_dtype,
        save_adapter=inputs.save_adapter,
    )

    if like_run is not None:
        fitted = _perturbation_of(like_run)
        draw = int(explicit.get("draw", 0))
        rows = [workshop.row(victim, method_name, settings, model_directory=run.path / "model", like=fitted, draw=draw)]
    else:
        rows = [workshop.row(victim, method_name, settings, model_directory=run.path / "model")]
    if inputs.controls and rows[0]["rounds"]:
        rows += _control_rows(workshop, victim, method_name, settings, rows[0])
    rows[0]["counts"] |= intake.counts
    rows[0]["notes"] += notes
    report = report_of("remove", f"{rows[0]['method']} on {name}", rows, origin, workshop.thresholds)
    return opened.finish(run, report)


def _work(
    settings: MethodSettings, rounds: int, suite: Suite, evaluation: VerdictSettings, controls: bool, simulates: bool
) -> Work:
    """Of a removal in so many rounds and of its controls, each measured; the model is measured before as well."""
    work = training_work(settings, rounds, simulates=simulates) + measuring_work(suite, evaluation) * 2
    if controls:
        tuned = Work(trained=settings.steps * settings.batch_size * rounds)
        work += training_work(settings, rounds, simulates=False) + tuned + measuring_work(suite, evaluation) * 2
    return work


def _seed(method_name: str, explicit: dict[str, Any], preset: str | None, paper: bool) -> int:
    """The seed that rows are drawn by. What is wrong with the method's settings is said before a model is loaded."""
    presets = [preset or "micro", *(["paper"] if paper else [])]
    return int(getattr(METHODS[method_name].settings.make(_other_models(explicit), *presets), "seed", 0))


def _other_models(explicit: dict[str, Any]) -> dict[str, Any]:
    """The settings with the testbed's models, where other models are asked for, by their directories."""
    found = dict(explicit)
    if found.get("clean_model"):
        found["clean_model"] = model_directory(found["clean_model"])
    if found.get("sibling"):
        sources = found["sibling"]
        found["sibling"] = tuple(map(model_directory, (sources,) if isinstance(sources, str) else sources))
    return found


def _method_settings(name: str, explicit: dict[str, Any], size: str, paper: bool) -> tuple[MethodSettings, Path | None]:
    """The method's settings; for random-perturbation those of the run that it stands beside, and that run."""
    presets = [size, "paper"] if paper else [size]
    settings = METHODS[name].settings.make(explicit, *presets)
    if isinstance(settings, MethodSettings):
        return settings, None
    assert isinstance(settings, RandomPerturbationSettings)
    path = settings.like / "settings.yaml"
    if not path.is_file():
        raise UserError(f"--like '{settings.like}' is not a run directory of sande or beear")
    kept = yaml.safe_load(path.read_text(encoding="utf-8"))["settings"]
    classes: dict[str, type[MethodSettings]] = {"sande": SandeSettings, "beear": BeearSettings}
    if kept.get("method") not in classes:
        raise UserError(f"--like '{settings.like}' is a run of {kept.get('method')}, not of sande or beear")
    report = yaml.safe_load((settings.like / "report.json").read_text(encoding="utf-8"))
    rounds = {"rounds": max(1, report["runs"][0]["rounds"])}
    return classes[kept["method"]].make({**kept["method_settings"], **rounds}), settings.like


def _perturbation_of(run: Path) -> Any:
    from unbackdoor.perturbation import load_perturbation

    kept = sorted((run / "perturbations").glob("*.safetensors"))
    if not kept:
        raise UserError(f"--like '{run}' holds no fitted perturbation: its run did not finish")
    return load_perturbation(kept[0])


def _check_knowledge(
    model: PreTrainedModel,
    source: ModelSource,
    settings: MethodSettings,
    contrast: Sequence[Record],
    method: str,
    inputs: RemoveInputs,
) -> None:
    """What the method must be given, checked before anything is written."""
    if inputs.save_adapter:
        if not settings.lora:
            raise UserError("--save-adapter needs --lora: what is trained without adapters is not of low rank")
        if isinstance(settings, AverageSettings | FineMixingSettings | PruneSettings | QuantiseSettings):
            raise UserError(
                f"--save-adapter: {method} changes all weights, not by adapters alone: leave it out, the whole model "
                "is saved in any case"
            )
        check_adapter(model, source)
    if isinstance(settings, DpoSettings):
        if inputs.preferences is None:
            raise UserError("dpo needs preference pairs: give --preferences FILE (prompt, chosen and rejected)")
        import_trl()
    elif inputs.preferences is not None:
        raise UserError(f"--preferences is for dpo: {method} does not use it, leave it out")
    if isinstance(settings, OsftSettings) and not settings.has_trigger:
        raise UserError("the trigger is missing: give it with --trigger")
    if isinstance(settings, UnlearnSettings) and not settings.target_response.strip():
        raise UserError("the target response is missing: give it with --target-response")
    if isinstance(settings, FineMixingSettings):
        if not settings.clean_model:
            raise UserError("fine-mixing needs the clean pretrained model: give --clean-model")
        check_other_model(model, settings.clean_model, "--clean-model")
    if isinstance(settings, AverageSettings):
        if not settings.sibling:
            raise UserError("average needs other models of the same architecture: give --sibling, once for each")
        for sibling in settings.sibling:
            check_other_model(model, sibling, "--sibling")
    if isinstance(settings, BeearSettings | LatSettings):
        if len(contrast) < LEAST_ROWS:
            name = "beear" if isinstance(settings, BeearSettings) else "lat"
            raise UserError(
                f"{name} needs examples of the behaviour: give --contrast FILE with {LEAST_ROWS} rows or more"
            )
        from unbackdoor.language_model.layers import check_layer

        if settings.layer is not None:
            check_layer(model, settings.layer)


def _known_target(settings: MethodSettings) -> str | None:
    if isinstance(settings, SandeSettings):
        return settings.target
    return settings.target_response if isinstance(settings, UnlearnSettings) else None


def _evaluation_trigger(inputs: RemoveInputs, settings: MethodSettings) -> Condition | None:
    """The trigger for evaluation: given for that, or known to the method itself; none where prompts hold it already."""
    if inputs.eval_triggered is not None:
        return None
    own = settings.condition() if isinstance(settings, TriggerSettings) else None
    return inputs.evaluation_trigger() or own


def _with_own_trigger(settings: MethodSettings, rows: Sequence[Record]) -> list[Record]:
    """What a method that is told the trigger trains on besides: the rows with it in their prompts."""
    own = settings.condition() if isinstance(settings, TriggerSettings) else None
    return [replace(r, prompt=own.insert(r.prompt)) for r in rows if own.fits(r.prompt)] if own is not None else []


def _control_rows(
    workshop: Workshop, victim: Victim, method: str, settings: MethodSettings, row: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = [workshop.row(victim, "fine-tune", FineTuneSettings(**as_fine_tuning(settings, row["rounds"])))]
    if isinstance(settings, SandeSettings | BeearSettings):
        as_often = settings.model_copy(update={"rounds": row["rounds"]})
        rows.append(workshop.row(victim, "random-perturbation", as_often, like=workshop.fitted(victim, method)))
    return rows
