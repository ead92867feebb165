"""How every command begins: model and rows are read and checked, then the run directory is made and the job begins.

Everything that can be wrong with the input is found before the run directory is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unbackdoor.data.named_sources import model_directory
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import sentence
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.question_sets import Question, SetName, read_question_sets
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.given_form import check_base
from unbackdoor.language_model.files.handed_back import handed_back
from unbackdoor.language_model.files.loading import context_length, load_tokenizer
from unbackdoor.language_model.precision import compute_in
from unbackdoor.language_model.reading import Reading
from unbackdoor.progress import Progress
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.run_files.inputs_apart import check_apart
from unbackdoor.scorers import Scorer
from unbackdoor.scorers.parts.attack import check_judges, suite_of
from unbackdoor.settings import EvaluationSettings, Thresholds, TrainingSettings, VerdictSettings
from unbackdoor.workflows.askable import check_asks_something, check_target_fits, check_trigger_fits
from unbackdoor.workflows.conclusion import plain
from unbackdoor.workflows.inputs import CommandInputs, MeasuredInputs
from unbackdoor.workflows.job import AS_TRAINED, Job, Saving
from unbackdoor.workflows.published_prompts import NONE_PUBLISHED, PublishedPrompts
from unbackdoor.workflows.read_files import read_files, sources
from unbackdoor.workflows.rows import NONE_TRAINED, Intake, TrainingRows
from unbackdoor.workflows.subject import Demands, Subject


@dataclass
class Opening:
    """A command's input, read and checked: nothing is written yet.

    Args:
        inputs: what the command is given.
        evaluation: how much is measured.
        out: the run directory that will be made.
        overwrite: replace it.
        resume: go on with it.
        begun: when the command began.
        progress: where it is said what happens.
        subject: the model.
        intake: its rows: read, checked, counted where they are dropped.
        clean: the clean rows.
        contrast: the contrast rows.
        judge: who judges a behaviour.
        questions: MMLU's and ARC's.
    """

    inputs: CommandInputs
    evaluation: EvaluationSettings
    out: Path
    overwrite: bool
    resume: bool
    begun: float
    progress: Progress
    subject: Subject
    intake: Intake
    clean: list[Record]
    contrast: list[Record]
    judge: Scorer
    questions: dict[SetName, list[Question]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        source: str,
        inputs: CommandInputs,
        evaluation: EvaluationSettings,
        out: Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        least: int = 1,
        seed: int = 0,
        compared: Sequence[str] = (),
        suspect: str | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Opening:
        """Read the model and its rows: at least so many clean ones, at most as many as the inputs say, by seed.

        The rows are told apart as it and the models that it is `compared` with render them. Where one of these is the
        `suspect`, the model before a removal, this model is read by that one's tokenizer and template.
        What it and `more`, a method's own settings, name must not lie in `out`, nor `out` in it.
        """
        begun = time.monotonic()
        source = model_directory(source)
        base = model_directory(inputs.base) if inputs.base is not None else None
        progress = Progress.on_stderr()
        reads = [("the model", source), *read_files(inputs), *read_files(more)]
        check_apart(out, reads)
        RunDirectory.check(out, overwrite=overwrite, resume=resume)
        judge = inputs.judge()  # wrong options are found before a model is loaded
        compute_in(inputs.precision)
        intake = Intake(progress, turns=inputs.turns)
        limited = inputs if isinstance(inputs, MeasuredInputs) else None
        most, most_contrast = (limited.max_rows, limited.max_contrast) if limited else (None, None)
        clean = intake.read(inputs.data, least=least, most=most, seed=seed)
        contrast = intake.read(inputs.contrast, needs_unwanted=True, most=most_contrast, seed=seed)
        questions = read_question_sets(
            mmlu=inputs.mmlu,
            arc_easy=inputs.arc_easy,
            arc_challenge=inputs.arc_challenge,
            piqa=inputs.piqa,
            limit=inputs.max_questions,
        )
        check_base(base, [source, *map(model_directory, compared)])
        reading = Reading(source if suspect is None else model_directory(suspect), base, inputs.tokenizer_from)
        date = inputs.date or (RunDirectory.setting(out, "date") if resume else None)
        subject = Subject(source, reading, inputs.template, inputs.system, date)
        form, given = subject.form, subject.given
        if given.base is not None:  # that an adapter names itself
            check_apart(out, [("the adapter's base", given.base.directory)])
        tokenizers = [subject.tokenizer]
        for told in [*form, *handed_back(given).acts]:  # what was done, so not before it
            progress.note(told)
        tokenizers += [load_tokenizer(model_directory(other), base) for other in compared if other != suspect]

        def formats() -> list[ChatFormat]:
            return [ChatFormat.of(each, inputs.template, inputs.system, subject.date) for each in tokenizers]

        intake.formats, intake.context = formats(), context_length(subject.model)
        if subject.date is None and any(each.asks_the_date for each in intake.formats):
            subject.date = time.strftime("%Y-%m-%d")  # one day a run, whatever midnight it goes through
            intake.formats = formats()
        if inputs.date is not None and not any(each.takes_a_date for each in intake.formats):
            progress.note("--date changes nothing: the chat template writes no date")
        clean = intake.as_rendered(clean, inputs.data)
        contrast = intake.as_rendered(contrast, inputs.contrast)
        with_system = sum(r.system is not None for r in [*clean, *contrast])
        if with_system and subject.chat.name != "none" and not subject.chat.takes_system:
            place = "in front of the user's text, since the chat template has no system role"
            intake.counts[f"system prompts {place}"] = with_system
            progress.note(f"{with_system} rows' system prompts stand {place}")
        return cls(
            inputs,
            evaluation,
            out,
            overwrite,
            resume,
            begun,
            progress,
            subject,
            intake,
            clean,
            contrast,
            judge,
            questions,
        )

    def suite(
        self,
        held_out: list[Record],
        held_out_contrast: list[Record],
        trigger: Condition | None,
        target: str | None,
        published: PublishedPrompts = NONE_PUBLISHED,
    ) -> Suite:
        """What is measured, on rows that leave room for an answer."""
        inputs, evaluation, intake, subject = self.inputs, self.evaluation, self.intake, self.subject
        allowed = intake.read(inputs.eval_allowed, needs_response=False, any_label=False)
        allowed = intake.untrained(allowed, "--eval-allowed")
        held_out = intake.untrained(held_out, "held-out rows")
        held_out_contrast = intake.untrained(held_out_contrast, "held-out contrast rows")
        clean, requests, allowed = (
            intake.measurable(rows, evaluation)
            for rows in (intake.apart(held_out, trigger), intake.apart(held_out_contrast, trigger), allowed)
        )
        asked = (intake.measurable(rows, evaluation, 0) for rows in (published.triggered, published.untriggered))
        suite = suite_of(clean, requests, allowed, trigger, target, self.judge, inputs.exact_match, *asked)
        check_asks_something(suite)
        if suite.attack is not None and not self.resume:  # a run that goes on has tried it, and may ask nothing more
            check_judges(suite.attack, [*suite.triggered_rows, *suite.probes])
        context = intake.context
        if trigger is not None:
            check_trigger_fits(trigger, suite.probes, subject.chat, context, evaluation.max_new_tokens)
        if target is not None:
            check_target_fits(target, trigger, suite.triggered_rows or suite.probes, subject.chat, context)
        return replace(
            suite,
            questions=self.questions,
            question_protocol=inputs.question_protocol,
            conversations=intake.conversations(inputs.eval_turns, evaluation),
        )

    def begin(
        self,
        command: str,
        name: str,
        asked: Demands,
        settings: Mapping[str, Any],
        *,
        seed: int,
        say: str | None = None,
        reads: Mapping[str, Any] = MappingProxyType({}),
        others: Mapping[str, str] = MappingProxyType({}),
        verdicts: VerdictSettings | None = None,
        known: Sequence[dict[str, Any]] = (),
        rows: TrainingRows = NONE_TRAINED,
        saving: Saving = AS_TRAINED,
    ) -> Job:
        """Test the model, make the run directory, say how long it will take, and keep where the numbers come from.

        Args:
            command: the run directory's.
            name: what the model is called in the report.
            asked: what the run will ask of the model.
            settings: what decides the results beside these and the inputs.
            seed: decides every draw.
            say: what is said of the run as it begins.
            reads: settings that name further files that are read.
            others: further models that are read, by their directories.
            verdicts: what they ask for, and at which temperature answers are drawn.
            known: answers of the model that another run has, as `Answers` takes them.
            rows: what methods train on.
            saving: how a new model is saved.
        """
        subject, evaluation = self.subject, self.evaluation
        tested = subject.tested(asked)
        pace = subject.pace(asked.suite, evaluation)
        kept = {"model": subject.source, **plain(self.inputs), "date": subject.date, **plain(evaluation), **settings}
        run = RunDirectory.create(self.out, command, kept, overwrite=self.overwrite, resume=self.resume)
        if say is not None:
            self.progress.note(say)
        if not (self.resume and (self.out / "provenance.json").exists()):
            seconds = [pace.seconds(work, lora=asked.lora) for work in asked.work]
            self.progress.note(sentence(seconds[0], seconds[-1]))
        read = sources(subject.source, subject.base_that_counts, self.inputs, reads, **others)
        origin = run.keep_provenance({**provenance(command_line(), seed, read), "self_test": tested})
        temperature = verdicts.temperature if verdicts is not None else 0.0
        answers = Answers(evaluation, run, self.progress, temperature=temperature, seed=seed, known=known)
        job = Job(name, subject, asked.suite, run, answers, self.progress, verdicts or Thresholds(), rows, saving)
        job.origin, job.begun = origin, self.begun
        return job


def numbers(settings: TrainingSettings) -> str:
    """The settings that say most of a run, in one line."""
    training = ("rounds", "simulate_steps", "steps", "learning_rate", "batch_size", "beta")
    shown = (*training, "space", "layer", "length", "parrot_length")
    values = {name: getattr(settings, name) for name in shown if getattr(settings, name, None) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
