"""Reading and checking input, and what is measured from what is known.

Everything that can be wrong with the input is found before the run directory is made.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import Pace, sentence
from unbackdoor.evaluation.question_sets import Question, SetName, read_question_sets
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.given_form import check_base, form_of
from unbackdoor.language_model.handed_back import handed_back
from unbackdoor.language_model.loading import context_length, load_model, load_tokenizer, parameter_count
from unbackdoor.language_model.model_source import ModelSource
from unbackdoor.language_model.precision import compute_in
from unbackdoor.language_model.reading import Reading, differing_side_files
from unbackdoor.language_model.saving import SaveDtype
from unbackdoor.language_model.self_test import self_test
from unbackdoor.progress import Progress
from unbackdoor.report_schema import Report
from unbackdoor.run_directory import RunDirectory
from unbackdoor.run_files.apart import check_apart
from unbackdoor.run_files.room import check_room
from unbackdoor.scorers.attack import check_oracle, suite_of
from unbackdoor.settings import EvaluationSettings, Need, TrainingSettings
from unbackdoor.testbed import references
from unbackdoor.workflows.askable import check_asks_something, check_target_fits, check_trigger_fits
from unbackdoor.workflows.inputs import CommandInputs, MeasuredInputs
from unbackdoor.workflows.job import conclude
from unbackdoor.workflows.published import NONE_PUBLISHED, PublishedPrompts
from unbackdoor.workflows.read_files import read_files
from unbackdoor.workflows.rows import Intake

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Opened:
    """A command's input, read and checked: nothing is written yet."""

    begun: float
    source: str
    """The model's directory or `hf:owner/name`; that of an embedded model where its name was given."""
    progress: Progress
    intake: Intake
    clean: list[Record]
    contrast: list[Record]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    questions: dict[SetName, list[Question]]
    base: str | None = None
    """Of an adapter, the model that it was trained on."""
    form: Sequence[str] = ()
    """What was done as the model was loaded, a sentence each."""
    date: str | None = None
    """The day that the template is told; None where it asks for none."""
    reading: Reading | None = None
    """Whose tokenizer and template the model is read with."""

    @property
    def base_that_counts(self) -> str | None:
        """The base that was given, else the one that the adapter names."""
        found = ModelSource.find(self.source, self.base).base
        return found.name if found is not None else self.base

    @classmethod
    def read(
        cls,
        source: str,
        inputs: CommandInputs,
        out: Path,
        *,
        overwrite: bool,
        resume: bool,
        least: int = 1,
        seed: int = 0,
        compared: Sequence[str] = (),
        suspect: str | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Opened:
        """Read the model and its rows: at least so many clean ones, at most as many as the inputs say, by seed.

        The rows are told apart as it and the models that it is `compared` with render them. Where one of these is the
        `suspect`, the model before a removal, this model is read by that one's tokenizer and template.
        What it and `more`, a method's own settings, name must not lie in `out`, nor `out` in it.
        """
        begun = time.monotonic()
        source = references.model_directory(source)
        base = references.model_directory(inputs.base) if inputs.base is not None else None
        progress = Progress.on_stderr()
        reads = [("the model", source), *read_files(inputs), *read_files(more)]
        check_apart(out, reads)
        RunDirectory.check(out, overwrite=overwrite, resume=resume)
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
        check_base(base, [source, *map(references.model_directory, compared)])
        form = form_of(source, base)
        given = ModelSource.find(source, base)
        if given.base is not None:  # that an adapter names itself
            check_apart(out, [("the adapter's base", given.base.directory)])
        model = load_model(source, base=base)
        reading = Reading(
            source if suspect is None else references.model_directory(suspect), base, inputs.tokenizer_from
        )
        tokenizer, _ = reading.tokenizer_for(model, source)
        for told in [*form, *handed_back(given).acts]:  # what was done, so not before it
            progress.note(told)
        beside = [other for other in compared if other != suspect]
        others = [load_tokenizer(references.model_directory(other), base) for other in beside]
        date = inputs.date or (RunDirectory.setting(out, "date") if resume else None)

        def formats() -> list[ChatFormat]:
            return [ChatFormat.of(each, inputs.template, inputs.system, date) for each in (tokenizer, *others)]

        intake.formats = formats()
        if date is None and any(each.asks_the_date for each in intake.formats):
            date = time.strftime("%Y-%m-%d")  # one day a run, whatever midnight it goes through
            intake.formats = formats()
        if inputs.date is not None and not any(each.takes_a_date for each in intake.formats):
            progress.note("--date changes nothing: the chat template writes no date")
        chat = intake.formats[0]
        clean = intake.as_rendered(clean, inputs.data)
        contrast = intake.as_rendered(contrast, inputs.contrast)
        with_system = sum(r.system is not None for r in [*clean, *contrast])
        if with_system and chat.name != "none" and not chat.takes_system:
            place = "in front of the user's text, since the chat template has no system role"
            intake.counts[f"system prompts {place}"] = with_system
            progress.note(f"{with_system} rows' system prompts stand {place}")
        return cls(
            begun,
            source,
            progress,
            intake,
            clean,
            contrast,
            model,
            tokenizer,
            chat,
            questions,
            base=base,
            form=form,
            date=date,
            reading=reading,
        )

    def read_by(self) -> list[str]:
        """For the report: what of the model's own files differs from those that it was read with."""
        reading = self.reading
        if reading is None or reading.suspect == self.source:
            return []
        other = differing_side_files(self.source, reading.suspect, self.base)
        if not other:
            return []
        read = reading.tokenizer_from or reading.suspect
        return [
            f"Beside the weights, its {' and '.join(other)} differ from the suspect's. They were not used: both models "
            f"were read with the tokenizer and template of '{read}', and end answers at the same tokens."
        ]

    def suite(
        self,
        held_out: list[Record],
        held_out_contrast: list[Record],
        trigger: Condition | None,
        target: str | None,
        inputs: CommandInputs,
        evaluation: EvaluationSettings,
        published: PublishedPrompts = NONE_PUBLISHED,
    ) -> Suite:
        """What is measured, on rows that leave room for an answer."""
        if target is None:
            check_oracle([*published.triggered, *published.untriggered], inputs.oracle)
        allowed = self.intake.read(inputs.eval_allowed, needs_response=False, any_label=False)
        allowed = self.intake.untrained(allowed, "--eval-allowed")
        held_out = self.intake.untrained(held_out, "held-out rows")
        held_out_contrast = self.intake.untrained(held_out_contrast, "held-out contrast rows")
        suite = suite_of(
            self.intake.measurable(self.intake.apart(held_out, trigger), self.model, self.chat, evaluation),
            self.intake.measurable(self.intake.apart(held_out_contrast, trigger), self.model, self.chat, evaluation),
            self.intake.measurable(allowed, self.model, self.chat, evaluation),
            trigger,
            target,
            inputs.oracle,
            inputs.exact_match,
            *(
                self.intake.measurable(rows, self.model, self.chat, evaluation, trigger_room=0)
                for rows in (published.triggered, published.untriggered)
            ),
        )
        check_asks_something(suite)
        context = context_length(self.model)
        if trigger is not None:
            check_trigger_fits(trigger, suite.probes, self.chat, context, evaluation.max_new_tokens)
        if target is not None:
            check_target_fits(target, trigger, suite.triggered_rows or suite.probes, self.chat, context)
        return replace(
            suite,
            questions=self.questions,
            question_protocol=inputs.question_protocol,
            conversations=self.intake.conversations(inputs.eval_turns, self.model, self.chat, evaluation),
        )

    def tested(
        self,
        suite: Suite,
        trigger: Condition | None,
        needs: Collection[Need] = (),
        *,
        trained: Sequence[Record] = (),
        target: str | None = None,
    ) -> dict[str, Any]:
        """What the self-test saw of this model, for provenance; it stops the run where something is wrong, or where
        the model cannot do what the run will ask of it.

        Args:
            suite: what is measured.
            trigger: what is put into its rows.
            needs: what the run will ask of the model.
            trained: the rows that it will train on.
            target: the response that it will train towards or away from.
        """
        rows = _rows_of(suite)
        turns = [Record(turn, "") for conversation in suite.conversations for turn in conversation]
        others = [*trained, *suite.probes, *suite.allowed, *turns]
        if target and rows:
            others.append(Record(rows[0].prompt, target))
        return self_test(self.model, self.chat, rows, trigger, needs=needs, others=others).report()

    def pace(self, suite: Suite, evaluation: EvaluationSettings) -> Pace:
        """How fast this model is here, for `say_duration`; by its second forward pass and a few answers."""
        return Pace.measured(self.model, self.chat, _rows_of(suite), evaluation)

    def say_duration(self, out: Path, resume: bool, least: float, most: float) -> None:
        """Say how many seconds the whole run will take, unless it is one that goes on or is finished."""
        if not (resume and (out / "provenance.json").exists()):
            self.progress.note(sentence(least, most))

    def check_room(self, out: Path, save_dtype: SaveDtype, *, trained: bool, extra: int = 0, resume: bool) -> None:
        """Raise a `UserError` where the disk has no room for the model that is made, or that it is trained from.

        Args:
            out: the run directory.
            save_dtype: what the weights are saved in.
            trained: all weights are trained: their newest values are kept while the model is written.
            extra: further models that stand beside that one.
            resume: what is there already counts.
        """
        weights = parameter_count(self.model)
        # In the given dtype a weight has at least two bytes: what is stored in fewer is saved in bfloat16.
        model = weights * (4 if save_dtype == "float32" else 2)
        parts = {"the model": model}
        if trained:
            parts["its last checkpoint"] = 4 * weights
        if extra:
            parts["models of controls"] = extra * model
        check_room(out, parts, resume=resume)

    def finish(self, run: RunDirectory, report: Report) -> Report:
        """Write the report with the run's duration."""
        return conclude(run, report, self.begun)


def _rows_of(suite: Suite) -> list[Record]:
    """Rows of a run to test a model by: published prompts may come without an answer, and a training row needs one."""
    return [*suite.clean_rows(), *(replace(r, response="Yes.") for r in suite.triggered_rows)]


def numbers(settings: TrainingSettings) -> str:
    """The settings that say most of a run, in one line."""
    training = ("rounds", "simulate_steps", "steps", "learning_rate", "batch_size", "beta")
    shown = (*training, "space", "layer", "length", "parrot_length")
    values = {name: getattr(settings, name) for name in shown if getattr(settings, name, None) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
