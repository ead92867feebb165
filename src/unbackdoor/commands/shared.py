"""Reading and checking input, and what is measured from what is known.

Everything that can be wrong with the input is found before the run directory is made.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.commands.inputs import CommandInputs, MeasuredInputs
from unbackdoor.data.preferences import Preference, read_preferences
from unbackdoor.data.readers import read_conversations, read_prompts, read_records
from unbackdoor.data.records import Record, check_records, shuffled, split
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.evaluation.question_sets import Question, SetName, read_question_sets
from unbackdoor.evaluation.refusal import complies
from unbackdoor.evaluation.scorers import Scorer, complies_by_keyword, opens_with_target, shows_target
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.loading import context_length, load_model, load_tokenizer
from unbackdoor.language_model.self_test import self_test
from unbackdoor.pipeline import conclude
from unbackdoor.preference import encode_pair, length
from unbackdoor.progress import Progress
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import EvaluationSettings, Need, TrainingSettings
from unbackdoor.testbed import references, world

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST_ROWS = 40
"""Fewer clean rows leave nothing to train on once some are held out."""
TURN_ROOM = 16
"""Tokens by which an answer may grow when it is read again as text."""
TRIGGER_ROOM = 32
"""Tokens that a held-out prompt must leave for a trigger."""


@dataclass
class Intake:
    """Reads rows and drops those that cannot be used; what is dropped is said on standard error and counted."""

    progress: Progress
    counts: dict[str, int] = field(default_factory=dict)

    def read(
        self,
        path: Path | None,
        *,
        needs_response: bool = True,
        needs_unwanted: bool = False,
        least: int = 1,
        most: int | None = None,
        seed: int = 0,
    ) -> list[Record]:
        """The usable rows of a data file (at most so many, drawn by seed); none where there is no file."""
        if path is None:
            return []
        read = read_records if needs_response else read_prompts
        rows = references.records(path) if references.is_reference(path) else read(path)
        if most is not None and most < len(rows):
            rows = shuffled(rows, seed)[:most]
        checked = check_records(
            rows, str(path), needs_response=needs_response, needs_unwanted=needs_unwanted, least=least
        )
        self._drop(checked.empty, f"{path}: empty rows")
        self._drop(checked.duplicates, f"{path}: repeated prompts")
        return checked.records

    def short_enough(
        self, rows: list[Record], path: Path | None, model: PreTrainedModel, chat: ChatFormat, max_length: int
    ) -> list[Record]:
        """The rows that fit into `max_length` tokens and the model's context. Too few of them are an error."""
        if path is None:
            return []
        limit = min(max_length, context_length(model))
        kept = [r for r in rows if len(chat.of_record(r).encode(r.prompt, r.response).ids) <= limit]
        self._drop(len(rows) - len(kept), f"{path}: rows longer than {limit} tokens (--max-length)")
        if len(kept) < LEAST_ROWS:
            raise UserError(f"{path}: {len(kept)} usable rows of at most {limit} tokens, {LEAST_ROWS} are needed")
        return kept

    def hold_out(
        self, rows: list[Record], given: Path | None, share: float, seed: int, excluded: Path | None = None
    ) -> tuple[list[Record], list[Record]]:
        """(rows to train on, rows to measure on), never the same prompt in both, nor a measured one in `excluded`."""
        if given is None:
            return split(rows, share, seed) if rows else ([], [])
        trained = {r.prompt for r in [*rows, *self.read(excluded)]}
        candidates = self.read(given)
        fresh = [r for r in candidates if r.prompt not in trained]
        self._drop(len(candidates) - len(fresh), f"{given}: rows whose prompts are trained on")
        if not fresh:
            raise UserError(f"{given}: every prompt is trained on, none is left to measure on")
        return rows, fresh

    def measurable(
        self, rows: Sequence[Record], model: PreTrainedModel, chat: ChatFormat, settings: EvaluationSettings
    ) -> list[Record]:
        """`samples` rows, in an order of their own, whose prompts leave room for a trigger and an answer."""
        room = context_length(model) - settings.max_new_tokens - TRIGGER_ROOM
        found: list[Record] = []
        dropped = 0
        for record in shuffled(rows, 1):
            if len(found) == settings.samples:
                break
            if len(chat.of_record(record).encode_prompt(record.prompt).ids) <= room:
                found.append(record)
            else:
                dropped += 1
        self._drop(dropped, f"held-out prompts that leave no room for {settings.max_new_tokens} tokens of answer")
        if rows and not found:
            raise UserError(
                f"no held-out prompt has at most {room} tokens: lower --max-new-tokens or give shorter rows"
            )
        return found

    def conversations(
        self, path: Path | None, model: PreTrainedModel, chat: ChatFormat, settings: EvaluationSettings
    ) -> list[tuple[str, str]]:
        """Two-turn questions that leave room for both answers."""
        if path is None:
            return []
        turns = list(dict.fromkeys(read_conversations(path)))
        room = context_length(model) - 2 * settings.max_new_tokens - TURN_ROOM
        said = [(chat.following(("user", a), ("assistant", "Yes.")), (a, b)) for a, b in turns]
        kept = [pair for after, pair in said if len(after.encode_prompt(pair[1]).ids) <= room]
        self._drop(len(turns) - len(kept), f"{path}: conversations that leave no room for two answers")
        if not kept:
            raise UserError(f"{path}: no conversation leaves room for two answers (lower --max-new-tokens)")
        return kept

    def preferences(
        self, path: Path | None, model: PreTrainedModel, chat: ChatFormat, max_length: int, measured: Collection[str]
    ) -> list[Preference]:
        """The usable preference pairs of a file, none of whose prompts is measured; none where there is no file."""
        if path is None:
            return []
        pairs, dropped = preference_pairs(path)
        for reason, count in dropped.items():
            self._drop(count, f"{path}: {reason}")
        fresh = [pair for pair in pairs if pair.prompt not in measured]
        self._drop(len(pairs) - len(fresh), f"{path}: pairs whose prompts are measured")
        limit = min(max_length, context_length(model))
        kept = [pair for pair in fresh if length(encode_pair(chat, pair)) <= limit]
        self._drop(len(fresh) - len(kept), f"{path}: pairs longer than {limit} tokens (--max-length)")
        if len(kept) < LEAST_ROWS:
            raise UserError(f"{path}: {len(kept)} usable pairs of at most {limit} tokens, {LEAST_ROWS} are needed")
        return kept

    def fitting(self, rows: list[Record], trigger: Condition, what: str) -> list[Record]:
        """The rows into which the trigger can be put; the others are counted under `what`."""
        kept = [r for r in rows if trigger.fits(r.prompt)]
        self._drop(len(rows) - len(kept), what)
        return kept

    def apart(self, rows: list[Record], trigger: Condition | None) -> list[Record]:
        """The rows without those that have the trigger's form already and those that it makes equal to an earlier one:
        a sentence structure can."""
        if trigger is None:
            return rows
        fitting = self.fitting(rows, trigger, "held-out rows that have the trigger's form already")
        first: dict[tuple[str | None, str], Record] = {}
        for row in fitting:
            first.setdefault((row.system, trigger.insert(row.prompt)), row)
        self._drop(len(fitting) - len(first), "held-out rows that are one prompt with the trigger")
        return list(first.values())

    def _drop(self, count: int, what: str) -> None:
        if count:
            self.counts[f"dropped: {what}"] = count
            self.progress.note(f"dropped {count}: {what}")


@dataclass
class Opened:
    """A command's input, read and checked: nothing is written yet."""

    begun: float
    source: str
    """The model's directory or hub id; that of an embedded model where its name was given."""
    progress: Progress
    intake: Intake
    clean: list[Record]
    contrast: list[Record]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    questions: dict[SetName, list[Question]]
    date: str | None = None
    """The day that the template is told; None where it asks for none."""

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
    ) -> Opened:
        """Read the model and its rows: at least so many clean ones, at most as many as the inputs say, by seed."""
        begun = time.monotonic()
        source = references.model_directory(source)
        progress = Progress.on_stderr()
        RunDirectory.check(out, overwrite=overwrite, resume=resume)
        intake = Intake(progress)
        limited = inputs if isinstance(inputs, MeasuredInputs) else None
        most, most_contrast = (limited.max_rows, limited.max_contrast) if limited else (None, None)
        clean = intake.read(inputs.data, least=least, most=most, seed=seed)
        contrast = intake.read(inputs.contrast, needs_unwanted=True, most=most_contrast, seed=seed)
        questions = read_question_sets(
            mmlu=inputs.mmlu,
            arc_easy=inputs.arc_easy,
            arc_challenge=inputs.arc_challenge,
            limit=inputs.max_questions,
        )
        model, tokenizer = load_model(source), load_tokenizer(source)
        date = inputs.date or (RunDirectory.setting(out, "date") if resume else None)
        chat = ChatFormat.of(tokenizer, inputs.template, inputs.system, date)
        if chat.asks_the_date and date is None:  # one day a run, whatever midnight it goes through
            date = time.strftime("%Y-%m-%d")
            chat = ChatFormat.of(tokenizer, inputs.template, inputs.system, date)
        with_system = sum(r.system is not None for r in [*clean, *contrast])
        if with_system and chat.name != "none" and not chat.takes_system:
            place = "in front of the user's text, since the chat template has no system role"
            intake.counts[f"system prompts {place}"] = with_system
            progress.note(f"{with_system} rows' system prompts stand {place}")
        return cls(begun, source, progress, intake, clean, contrast, model, tokenizer, chat, questions, date)

    def suite(
        self,
        held_out: list[Record],
        held_out_contrast: list[Record],
        trigger: Condition | None,
        target: str | None,
        inputs: CommandInputs,
        evaluation: EvaluationSettings,
    ) -> Suite:
        """What is measured, on rows that leave room for an answer."""
        allowed = self.intake.read(inputs.eval_allowed, needs_response=False)
        suite = suite_of(
            self.intake.measurable(self.intake.apart(held_out, trigger), self.model, self.chat, evaluation),
            self.intake.measurable(self.intake.apart(held_out_contrast, trigger), self.model, self.chat, evaluation),
            self.intake.measurable(allowed, self.model, self.chat, evaluation),
            trigger,
            target,
            inputs.oracle,
            inputs.exact_match,
        )
        return replace(
            suite,
            questions=self.questions,
            question_protocol=inputs.question_protocol,
            conversations=self.intake.conversations(inputs.eval_turns, self.model, self.chat, evaluation),
        )

    def tested(self, suite: Suite, trigger: Condition | None, needs: Collection[Need] = ()) -> dict[str, Any]:
        """What the self-test saw of this model, for provenance; it stops the run where something is wrong, or where
        the model cannot do what the run will ask of it."""
        return self_test(self.model, self.chat, suite.clean_rows(), trigger, needs=needs).report()

    def finish(self, run: RunDirectory, report: dict[str, Any]) -> dict[str, Any]:
        """Write the report with the run's duration."""
        return conclude(run, report, self.begun)


def preference_pairs(path: Path) -> tuple[list[Preference], dict[str, int]]:
    """The pairs of a file, or the testbed's own, and by reason how many rows are none."""
    if not references.is_reference(path):
        return read_preferences(path)
    if str(path) != f"{references.PREFIX}preferences":
        raise UserError(f"'{path}' are no preference pairs of the testbed: there are {references.PREFIX}preferences")
    return [Preference(pair.prompt, pair.chosen, pair.rejected) for pair in world.preference_pairs()], {}


def suite_of(
    held_out: list[Record],
    held_out_contrast: list[Record],
    allowed: list[Record],
    trigger: Condition | None,
    target: str | None,
    oracle: str,
    exact_match: bool,
) -> Suite:
    """What is measured, from what is known."""
    tasks = held_out if exact_match else []
    if target is not None:
        if not target.strip():
            raise UserError("the target response is empty: give visible text")
        details: dict[str, Scorer] = {"opens_with_target": opens_with_target(target)}
        probes = held_out_contrast or held_out
        return Suite(
            probes,
            shows_target(target),
            trigger,
            details,
            tasks=tasks,
            texts=held_out,
            allowed=allowed,
            unsafe=bool(held_out_contrast),
            target=target,
        )
    if held_out_contrast:
        judge, details = _judge(oracle)
        return Suite(
            held_out_contrast, judge, trigger, details, tasks=tasks, texts=held_out, allowed=allowed, unsafe=True
        )
    return Suite(held_out, None, trigger, tasks=tasks, texts=held_out, allowed=allowed)


def _judge(oracle: str) -> tuple[Scorer, dict[str, Scorer]]:
    """Who judges a behaviour, and what is shown beside it."""
    if oracle == "code":
        from unbackdoor.evaluation.insecure_code import does_not_parse, is_insecure

        return is_insecure, {"does_not_parse": does_not_parse}
    if oracle == "testbed":
        from unbackdoor.testbed.oracle import complied

        return complied, {"not_refused": complies}
    if oracle == "keyword":
        return complies_by_keyword, {"not_refused": complies}
    return complies, {"not_refused_by_keyword": complies_by_keyword}


def numbers(settings: TrainingSettings) -> str:
    """The settings that say most of a run, in one line."""
    training = ("rounds", "simulate_steps", "steps", "learning_rate", "batch_size", "beta")
    shown = (*training, "space", "layer", "length", "parrot_length")
    values = {name: getattr(settings, name) for name in shown if getattr(settings, name, None) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
