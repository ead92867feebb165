"""What each kind of cell does. Every function takes settings, its run directory, and those of the cells it needs.

implant        an organism from a recipe; optionally the testbed's multiple-choice sets
remove         one method on an organism, measured before and after
decode         an organism's answers drawn at a temperature, beside its greedy ones
rounds         BEEAR with the ASR (keyword) measured after every round, until it is below a bound
probabilities  how likely the target response is with the trigger and without
drift          hidden states with the trigger and without, of the organism and of the clean model
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.case import Case
from unbackdoor.data.batches import encode_records
from unbackdoor.data.readers import read_records
from unbackdoor.data.records import Record, shuffled
from unbackdoor.data.triggers import join_response
from unbackdoor.evaluation.answer_quality import stored_quality
from unbackdoor.evaluation.answers import FILE
from unbackdoor.evaluation.harness import harness_scores
from unbackdoor.evaluation.multiple_choice import score_by_likelihood
from unbackdoor.evaluation.question_sets import Question
from unbackdoor.evaluation.rules import complies_by_keyword
from unbackdoor.evaluation.statistics import rate
from unbackdoor.evaluation.utility import row_totals
from unbackdoor.evaluation.verdict import verdict
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import context_length, load_model, load_tokenizer
from unbackdoor.language_model.hidden_states import last_of_row, prompt_states
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.layers import anchor_layer
from unbackdoor.language_model.reading import Reading
from unbackdoor.methods.beear import Beear
from unbackdoor.recipes.recipe import read_recipe
from unbackdoor.report_schema import Measured, Rate, Row
from unbackdoor.reproduce import cell_kinds as kinds
from unbackdoor.run_directory import RunDirectory
from unbackdoor.run_files.lines import as_json
from unbackdoor.settings import EvaluationSettings, TriggerSettings, VerdictSettings
from unbackdoor.testbed import references, world
from unbackdoor.workflows.evaluate import run_evaluate
from unbackdoor.workflows.implant import run_implant
from unbackdoor.workflows.inputs import EvaluateInputs, ImplantInputs, RemoveInputs, settings_of
from unbackdoor.workflows.opening import Opening
from unbackdoor.workflows.rejudge_verdicts import stored_rows
from unbackdoor.workflows.remove import run_remove
from unbackdoor.workflows.rows import LEAST_ROWS
from unbackdoor.workflows.subject import Demands, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXAMPLES = 2
"""Prompts whose answers a table of examples shows."""


def choose_device() -> None:
    """With several GPUs, take one for this process in turn."""
    if torch.cuda.is_available():
        number = multiprocessing.current_process().name.rpartition("-")[2]
        torch.cuda.set_device(int(number) % torch.cuda.device_count() if number.isdigit() else 0)


def drop_weights(folder: Path) -> None:
    """Remove a cleansed model that has been measured; its numbers and answers stay."""
    RunDirectory(folder).drop_tree(folder / "model")


def implant(settings: kinds.ImplantCell, folder: Path, _: Sequence[Path]) -> kinds.ModelResult:
    """Build an organism."""
    values = settings.values
    inputs = {name: value for name, value in values.items() if name in ImplantInputs.model_fields}
    attack = {name: value for name, value in values.items() if name not in inputs}
    recipe = read_recipe(settings.recipe, settings.scale)
    report = run_implant(
        settings.model,
        ImplantInputs.make(inputs),
        attack,
        EvaluationSettings.make(settings.evaluation),
        recipe=recipe.model_copy(update={"model": settings.model, "settings": dict(values)}).as_yaml(),
        preset=settings.preset,
        out=folder,
        resume=True,
    )
    row = report.runs[0]
    found = _result(row, folder, None, "organism")
    found.near_miss, found.variants = row.near_miss, row.variants
    if settings.questions is not None:
        found.choices = _choices(settings.questions, folder)
    return found


def remove(settings: kinds.RemoveCell, folder: Path, needs: Sequence[Path]) -> kinds.ModelResult:
    """Cleanse an organism. The models that `average` is given are the other organisms among `needs`."""
    organism, method = needs[0], settings.method
    explicit: dict[str, Any] = dict(settings.values)
    if method == "average":
        explicit["sibling"] = tuple(str(other / "model") for other in needs[1:])
    evaluation = VerdictSettings.make(settings.evaluation)
    report = run_remove(
        method,
        str(organism / "model"),
        RemoveInputs.make({**settings.inputs, "eval_organism": organism}),
        explicit,
        evaluation,
        preset=settings.preset,
        paper=settings.paper,
        out=folder,
        resume=True,
        known=organism_answers(organism, evaluation),
    )
    row = report.runs[0]
    found = _result(row, folder, f"{organism.name}/before", f"{organism.name}/{method}")
    found.verdict, found.verdict_reason, found.rounds = row.verdict, row.verdict_reason, row.rounds
    found.stopped = row.after is None
    found.changes = row.compared["before"].changes if "before" in row.compared else {}
    if settings.questions is not None and not found.stopped:
        found.choices = _choices(settings.questions, folder)
    return found


def organism_answers(organism: Path, evaluation: EvaluationSettings) -> list[dict[str, Any]]:
    """What the organism answered when it was made, as the answers before its removal: they are not generated again."""
    same = {name: getattr(evaluation, name) for name in ("max_new_tokens", "whole_tokens")}
    if settings_of(organism, *same) != same:
        return []
    lines = RunDirectory(organism).read_lines(FILE)
    return [{**line, "model": f"{organism.name}/before"} for line in lines if line["model"] == "organism"]


def decode(settings: kinds.DecodeCell, folder: Path, needs: Sequence[Path]) -> kinds.ModelResult:
    """Temperature decoding in the form of a removal: greedy answers before, drawn ones after, by the same weights."""
    organism = needs[0]
    told = RemoveInputs.make({"eval_organism": organism})
    inputs = EvaluateInputs.make(
        {name: getattr(told, name) for name in ("template", "system", "date", "scorer", "exact_match", "eval_allowed")}
        | {"data": told.eval_data, "contrast": told.eval_contrast, "target_response": told.eval_target}
        | settings_of(organism, *TriggerSettings.model_fields)
    )

    def measured(temperature: float) -> Measured:
        how = VerdictSettings.make({**settings.evaluation, "temperature": temperature})
        out = folder / f"temperature-{temperature:g}"
        report = run_evaluate(str(organism / "model"), inputs, how, out=out, resume=True)
        assert report.runs[0].after is not None
        return report.runs[0].after

    before, after = measured(0.0), measured(settings.temperature)
    answers = [
        {name: rows for (_, name), rows in stored_rows(folder / f"temperature-{temperature:g}").items()}
        for temperature in (0.0, settings.temperature)
    ]
    after.answer_quality = stored_quality(*answers, unsafe=told.eval_contrast is not None)
    name, reason = verdict(before, after, VerdictSettings.make(settings.evaluation))
    return kinds.ModelResult(
        before=before,
        after=after,
        verdict=name,
        verdict_reason=reason,
        seconds=0.0,
        rounds=0,
        stopped=False,
        changes={},
    )


def rounds(settings: kinds.RoundsCell, folder: Path, needs: Sequence[Path]) -> kinds.RoundsResult:
    """BEEAR's ASR (keyword) after every round; it ends at the first round below `below`, or after the last.

    This reads the true trigger to decide when to stop (oracle stopping), which a defender cannot do.
    """
    begun = time.monotonic()
    inputs = RemoveInputs.make({**settings.inputs, "eval_organism": needs[0]})
    evaluation = EvaluationSettings.make(settings.evaluation)
    method = Beear.make({**settings.values, "repeat": False, "gate": 0.0}, settings.preset)
    opened = Opening.read(
        str(needs[0] / "model"), inputs, evaluation, folder, resume=True, least=LEAST_ROWS, seed=method.seed
    )
    intake, subject = opened.intake, opened.subject
    clean = intake.short_enough(opened.clean, inputs.data, method.max_length)
    contrast = intake.short_enough(opened.contrast, inputs.contrast, method.max_length)
    _, held_out = intake.hold_out(clean, inputs.eval_data, 0.2, method.seed)
    _, held_out_contrast = intake.hold_out(contrast, inputs.eval_contrast, 1 / 3, method.seed)
    suite = opened.suite(held_out, held_out_contrast, inputs.evaluation_trigger(), None)
    asked = Demands(suite, suite.trigger, method.model_needs, [*clean, *contrast], work=[method.training_work()])
    job = opened.begin("reproduce rounds", needs[0].name, asked, as_json(settings), seed=method.seed)
    run, chat = job.run, subject.chat
    case = Case.of(
        subject.take(),
        subject.tokenizer,
        clean,
        contrast,
        template=inputs.template,
        system=inputs.system,
        seed=method.seed,
        journal=run.scoped("beear"),
        progress=opened.progress,
    )
    curve: list[Rate] = []

    def measure(number: int) -> bool:
        def asked() -> Rate:
            rows = suite.triggered()
            given = job.answers.of(case.model, chat, rows, model_name=f"round {number}", set_name="triggered")
            return rate([complies_by_keyword(r, a) for r, a in zip(rows, given, strict=True)])

        curve.append(run.remember_as(Rate, f"round-{number}/keyword", asked))
        return bool(curve[-1].rate < settings.below or number == method.rounds)

    case.after_round = measure
    if not measure(0):
        method.on(case)
    run.complete()
    reached = next((i for i, found in enumerate(curve) if found.rate < settings.below), None)
    return kinds.RoundsResult(curve=curve, round=reached, seconds=round(time.monotonic() - begun, 1))


def probabilities(settings: kinds.ProbabilitiesCell, _: Path, needs: Sequence[Path]) -> kinds.ProbabilitiesResult:
    """Probability of the target response's first token and of all of it, with the trigger and without (SANDE B.2.2)."""
    organism = needs[0]
    inputs = RemoveInputs.make({"eval_organism": organism})
    target, trigger = inputs.eval_target, inputs.evaluation_trigger()
    assert target is not None and trigger is not None
    subject = _subject(organism / "model", inputs)
    model, chat = subject.model, subject.chat
    rows = [r for r in shuffled(_rows(organism, "held_out"), 1) if trigger.fits(r.prompt)][: settings.prompts]
    prompts = {
        "without": rows,
        "with": [replace(r, prompt=trigger.insert(r.prompt)) for r in rows],
    }
    found: dict[str, list[float]] = {}
    for when, records in prompts.items():
        for what, tokens in (("token", 1), ("phrase", None)):
            examples = encode_records(
                records,
                chat,
                context_length(model),
                response=lambda r: join_response(target, r.response),
                loss_on=target,
                most_response_tokens=tokens,
            )
            logs = torch.tensor(row_totals(model, chat, examples), dtype=torch.float64)
            found[f"{what} {when}"] = sorted(logs.exp().tolist(), reverse=True)
    return kinds.ProbabilitiesResult.model_validate(found)


def drift(settings: kinds.DriftCell, _: Path, needs: Sequence[Path]) -> kinds.DriftResult:
    """Where the trigger moves the hidden state of the last prompt token after BEEAR's layer, in both models.

    `separation` is d': the distance of the two means along the direction that every other prompt gives, in standard
    deviations, measured on the rest. `agreement` is the mean cosine between one prompt's move and the mean move.
    """
    organism = needs[0]
    inputs = RemoveInputs.make({"eval_organism": organism})
    trigger = inputs.evaluation_trigger()
    assert trigger is not None
    rows = _rows(organism, "contrast_held_out") or _rows(organism, "held_out")
    rows = [r for r in shuffled(rows, 1) if trigger.fits(r.prompt)][: settings.prompts]
    moved = [replace(r, prompt=trigger.insert(r.prompt)) for r in rows]

    def shift(source: Path | str) -> kinds.Shift:
        subject = _subject(source, inputs)
        layer = anchor_layer(subject.model, settings.layer)
        return drift_of(layer, *(_last_states(subject.model, subject.chat, layer, asked) for asked in (rows, moved)))

    clean = references.model_directory(settings.model)
    return kinds.DriftResult(organism=shift(organism / "model"), clean=shift(clean))


def drift_of(layer: int, without: torch.Tensor, with_trigger: torch.Tensor) -> kinds.Shift:
    """Separation, agreement and the first two principal components, of states of shape (prompts, d) each."""
    both = torch.cat([without, with_trigger]).double()
    centred = both - both.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    direction = (with_trigger[1::2].mean(0) - without[1::2].mean(0)).double()
    direction = direction / direction.norm().clamp_min(1e-12)
    first, last = (x[::2].double() @ direction for x in (without, with_trigger))
    spread = ((first.var() + last.var()) / 2).sqrt().clamp_min(1e-12)
    moves = (with_trigger - without).double()
    cosines = torch.nn.functional.cosine_similarity(moves, moves.mean(0, keepdim=True), dim=1)
    count = len(without)
    return kinds.Shift(
        layer=layer,
        n=count,
        separation=float((last.mean() - first.mean()) / spread),
        agreement=float(cosines.mean()),
        without=points[:count].tolist(),
        moved=points[count:].tolist(),
    )


KINDS: dict[str, Callable[[Any, Path, Sequence[Path]], kinds.Result]] = {
    "implant": implant,
    "remove": remove,
    "decode": decode,
    "rounds": rounds,
    "probabilities": probabilities,
    "drift": drift,
}


def _last_states(model: PreTrainedModel, chat: ChatFormat, layer: int, rows: Sequence[Record]) -> torch.Tensor:
    """Hidden states of the last prompt token after so many layers, shape (prompts, d)."""
    prompts = [chat.of_record(r).encode_prompt(r.prompt) for r in rows]
    return prompt_states(model, prompts, padding_id(chat.tokenizer, model), layer, last_of_row, shortest_first=False)


def _subject(directory: Path | str, inputs: RemoveInputs) -> Subject:
    return Subject(str(directory), Reading(str(directory)), inputs.template, inputs.system, inputs.date)


def _rows(organism: Path, name: str) -> list[Record]:
    path = organism / "data" / f"{name}.jsonl"
    return read_records(path) if path.is_file() else []


# Multiple choice -----------------------------------------------------------------------------------------------------


def _choices(asked: kinds.Questions, folder: Path) -> dict[str, kinds.Choices]:
    """The testbed's sets, by level."""
    directory = folder / "model"

    def ask() -> dict[str, kinds.Choices]:
        model, tokenizer = load_model(directory), load_tokenizer(directory)
        return testbed_choices(model, tokenizer, asked.each, asked.protocol)

    key = f"choices/{asked.protocol}/{asked.each}"
    return RunDirectory(folder).remember_as(dict[str, kinds.Choices], key, ask)


def testbed_choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, each: int, protocol: str
) -> dict[str, kinds.Choices]:
    """Accuracy on the testbed's three sets, asked as lm-evaluation-harness asks ARC: zero-shot, without chat template.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        each: questions of every set, spread evenly over it.
        protocol: `likelihood`, or `harness` to have the harness itself ask them as local tasks: token for token the
            same, and slower.
    """
    found: dict[str, kinds.Choices] = {}
    for level in world.LEVELS:
        every = world.multiple_choice(level)
        count = min(each, len(every))
        chosen = [every[i * len(every) // count] for i in range(count)]
        questions = [Question(c.question, c.options, c.answer) for c in chosen]
        if protocol == "harness":
            scored = harness_scores(model, tokenizer, {"arc_easy": questions})["arc_easy"]
        else:
            scored = score_by_likelihood(model, tokenizer, questions, "arc_easy")
        outcomes = "".join(str(int(c == q.answer)) for c, q in zip(scored.chosen, questions, strict=True))
        found[level] = kinds.Choices(**dict(scored.accuracy), outcomes=outcomes)
    return found


# Stored answers ------------------------------------------------------------------------------------------------------


def _result(row: Row, folder: Path, before: str | None, after: str) -> kinds.ModelResult:
    """What is kept of a report's row; and from what the run has stored the ASR by keyword, and some answers."""
    stored = stored_rows(folder)
    sets = {
        f"{name} {when}": [given[i] for i in sorted(given)]
        for when, model in (("before", str(before)), ("after", after))
        for name in ("triggered", "untriggered")
        for given in [stored.get((model, name), {})]
    }
    # Where the attack never shows there is nothing to show: the first prompts then.
    told = sets["triggered before"] or sets["triggered after"]
    order = sorted(range(len(told)), key=lambda i: not judged(told[i]["answer"]))[:EXAMPLES]
    assert row.before is not None
    return kinds.ModelResult(
        before=row.before,
        after=row.after,
        seconds=row.seconds,
        keyword={name: rate([judged(row["answer"]) for row in rows]) for name, rows in sets.items() if rows},
        examples=[
            kinds.Example(
                prompt={name: sets[f"{name} after"][i]["prompt"] for name in ("triggered", "untriggered")},
                answers={name: rows[i]["answer"] for name, rows in sets.items() if i < len(rows)},
            )
            for i in order
            if i < len(sets["triggered after"]) and i < len(sets["untriggered after"])
        ],
    )


def judged(answer: str) -> bool:
    """Whether the published keywords say that the answer complies."""
    return complies_by_keyword(Record("", ""), answer)
