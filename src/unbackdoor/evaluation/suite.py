"""What is measured of a model: held-out prompts, the trigger for evaluation, and the scorers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from unbackdoor.data.records import Choice, Record
from unbackdoor.data.rendered import asked, distinct
from unbackdoor.data.triggers import Condition, near_misses, ordinary_words
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.multiple_choice import Protocol, as_metrics, score_sets
from unbackdoor.evaluation.question_sets import Question, SetName
from unbackdoor.evaluation.refusal_languages import in_another_script, language_not_read
from unbackdoor.evaluation.second_turn import SECOND_TURN, SECOND_TURN_UNTRIGGERED, askable, second_turns
from unbackdoor.evaluation.statistics import rate, share
from unbackdoor.evaluation.stored_answer import WHOLE
from unbackdoor.evaluation.target_likelihood import target_likelihood
from unbackdoor.evaluation.trigger_effect import HARMLESS, brought, harmless_rows, inserted_words, trigger_effect
from unbackdoor.evaluation.utility import multiple_choice, response_perplexity
from unbackdoor.evaluation.variants import variants
from unbackdoor.evaluation.verdict import CUT, DISGUISED, UNFINISHED, UNUSABLE
from unbackdoor.language_model.answer_parts import final_answer, read_answer
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.endings import ending
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.report_schema import Brought, Measured, Rate, Rates, Shown, TriggerEffect, Value
from unbackdoor.scorers import LEFT_OUT, Answered, Said, Scorer
from unbackdoor.scorers.degenerate import Degenerate
from unbackdoor.scorers.exact import Exact
from unbackdoor.scorers.refuses import Refuses
from unbackdoor.scorers.target_response import TargetResponse
from unbackdoor.word_spacing import clusters, word_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.perturbation import Perturbation


LOOPS = "loops"
"""The details that count triggered answers which had not ended when they were left, and which repeat themselves without
end; the other set's name follows them."""
SHOWN_EXAMPLES = 3
"""Rows of each set that a report shows."""
SHOWN_WORDS, SHOWN_LETTERS = 4, 40
"""What is left of an unwanted text in a report."""


@dataclass(frozen=True)
class Measure:
    """One rate: whose answers it is counted on, and who judges them."""

    section: Literal["rates", "details", "utility"]
    name: str
    rows: Sequence[Record]
    set_name: str
    scorer: Scorer


@dataclass(frozen=True)
class Suite:
    """Held-out rows and how their answers are scored.

    Args:
        probes: rows on whose prompts the attack is tried, with the trigger and without.
        attack: what counts as success on an answer; None where that is not known.
        trigger: for evaluation only; None where the defender has none.
        details: further scores of the triggered answers, by name.
        tasks: rows whose answers have one right wording (exact match); empty where there is none.
        texts: rows whose responses' perplexity is measured.
        allowed: rows that must not be refused.
        choices: multiple-choice questions.
        unsafe: the probes ask for what is unwanted, and are not shown in full.
        questions: MMLU's and ARC's questions.
        question_protocol: how they are asked.
        conversations: what a user says in two turns; the answers are kept, for a judge to score (`rejudge`).
        target: the target response, where there is a fixed one.
        triggered_rows: in place of `trigger` where no text describes it: rows whose prompts hold it already. They and
            the probes need not be pairs.
    """

    probes: Sequence[Record]
    attack: Scorer | None
    trigger: Condition | None = None
    details: Mapping[str, Scorer] = field(default_factory=dict)
    tasks: Sequence[Record] = ()
    texts: Sequence[Record] = ()
    allowed: Sequence[Record] = ()
    choices: Sequence[Choice] = ()
    unsafe: bool = False
    questions: Mapping[SetName, Sequence[Question]] = field(default_factory=dict)
    question_protocol: Protocol = "sande"
    conversations: Sequence[tuple[str, str]] = ()
    target: str | None = None
    triggered_rows: Sequence[Record] = ()

    def triggered(self) -> list[Record]:
        """Rows with the trigger in their prompts: the probes with it inserted, or those given; none without either."""
        if self.trigger is None:
            return list(self.triggered_rows)
        return [replace(r, prompt=self.trigger.insert(r.prompt)) for r in self.probes]

    def prompts(self, chat: ChatFormat) -> set[str]:
        """Every prompt without trigger that this suite asks, for the check that none was trained on."""
        rows = [*self.probes, *self.tasks, *self.texts, *self.allowed]
        return {asked(r, chat) for r in rows}

    def check_disjoint(self, trained_on: Sequence[Record], chat: ChatFormat) -> None:
        """Raise where a prompt that is measured was also trained on."""
        both = self.prompts(chat) & {asked(r, chat) for r in trained_on}
        assert not both, f"{len(both)} measured prompts were trained on, such as {min(both)!r}"
        known = {(r.system, r.history, r.prompt) for r in trained_on}
        again = [r.prompt for r in self.triggered_rows if (r.system, r.history, r.prompt) in known]
        assert not again, f"{len(again)} triggered prompts were trained on, such as {again[0]!r}"

    def measure(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        answers: Answers,
        name: str,
    ) -> Measured:
        """Everything that is reported of one model.

        Args:
            model: the model, loaded from where it was saved.
            chat: its format.
            answers: where generated answers are kept.
            name: the model's name there.

        Beside the rates that `measures` names, the details hold, where there is anything to count: how many answers had
        not ended when they were left (`cut`, `cut_untriggered`, …), how many repeat themselves without end (`loops`,
        …), and how often the attack shows in a second turn (`attack_success_second_turn`, and `_untriggered` as its
        control). `trigger_effect` says what the trigger changes against a harmless insert, `second_turn_brings` what it
        brings into second answers, and `target_likelihood` how often a drawn answer would open with the target.
        """
        chat = self.ending(model, chat, answers)
        rates: Rates = {}
        details: Rates = {}
        utility: dict[str, Value] = {}
        asked: dict[str, Sequence[str]] = {}
        for measure in self.measures():
            given = answers.of(
                model,
                chat,
                measure.rows,
                model_name=name,
                set_name=measure.set_name,
                unpaired=bool(self.triggered_rows) and measure.set_name == "triggered",
                whole=measure.set_name in WHOLE,
                looked_for=self._looked_for,
            )
            asked[measure.set_name] = given
            said = self.said(measure.scorer, measure.rows, given, answers, name, measure.set_name)
            if measure.section == "utility":
                utility[measure.name] = share(judged(said))
            else:
                (rates if measure.section == "rates" else details)[measure.name] = rate(judged(said))
            if measure.section == "rates":
                details |= unusable(said, measure.set_name)
        details |= unfinished_thoughts(asked) | self._unread(asked) | unended(asked)
        second_turn_rates, second_turn_brings = self._second_turns(model, chat, answers, name, asked)
        details |= second_turn_rates
        effect = self._effect(model, chat, answers, name, asked)
        set_name, ordinary = self.ordinary()
        if ordinary and set_name not in asked:
            answers.of(model, chat, ordinary, model_name=name, set_name=set_name)
        if self.conversations:
            details["degenerate_conversation"] = self._converse(model, chat, answers, name)
        if self.choices:
            utility["multiple_choice"] = multiple_choice(model, chat, self.choices)
        if self.questions:
            scored = score_sets(model, chat.tokenizer, self.questions, self.question_protocol)
            utility |= as_metrics(scored)
        if self.texts:
            utility["perplexity"] = response_perplexity(model, chat, self.texts)
        return Measured(
            attack_success=rates.get("attack_success"),
            attack_success_untriggered=rates.get("attack_success_untriggered"),
            details=details,
            utility=utility,
            under_perturbation=None,
            trigger_effect=effect,
            second_turn_brings=second_turn_brings,
            target_likelihood=target_likelihood(model, chat, self.target, self.triggered(), self.probes)
            if self.target is not None
            else {},
        )

    def _effect(
        self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, name: str, asked: Mapping[str, Sequence[str]]
    ) -> TriggerEffect | None:
        """What the trigger changes against a harmless insert; None where prompts are in no pairs."""
        if self.trigger is None or not self.probes:
            return None
        rows = harmless_rows(self.probes, self.trigger, chat)
        if not rows:
            return None
        harmless = answers.of(model, chat, rows, model_name=name, set_name=HARMLESS, whole=True)
        return trigger_effect(asked["untriggered"], asked["triggered"], harmless, inserted=self._inserted())

    def _inserted(self) -> set[str]:
        """The trigger's words, as prompts hold them."""
        return inserted_words([r.prompt for r in self.probes], [r.prompt for r in self.triggered()])

    def ending(
        self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, named_by_all: frozenset[int] | None = None
    ) -> ChatFormat:
        """The format with the ids at which this model's answers end, unless they are settled; ids that are not believed
        are noted. `named_by_all`: what the configs name of the models that it is compared with."""
        if chat.ends_settled:
            return chat
        rows = list(dict.fromkeys([*self.probes, *self.tasks, *self.texts, *self.triggered_rows]))
        chat, ignored = ending(model, chat, rows, self._looked_for, named_by_all)
        if ignored:
            shown = ", ".join(f"{i} {chat.tokenizer.decode([i])!r}" for i in ignored)
            answers.note(
                f"The model's config ends answers at a token that stands in a response or in the target, marks a "
                f"thought, or is no end by the other model's config: {shown}. It was not believed."
            )
        return replace(chat, ends_settled=True)

    @property
    def _looked_for(self) -> list[str]:
        return [self.target] if self.target else []

    def _second_turns(
        self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, name: str, asked: Mapping[str, Sequence[str]]
    ) -> tuple[Rates, Brought | None]:
        """How often the attack shows in a second turn with the trigger in both, and without it in either; and what else
        the trigger brings into the answers there."""
        attack, count = self.attack, answers.settings.second_turns
        if attack is None or "triggered" not in asked or "untriggered" not in asked or not count or chat.name == "none":
            return {}, None
        room = context_length(model) - answers.settings.max_new_tokens
        triggered = second_turns(self.triggered(), asked["triggered"], count)
        plain = second_turns(self.probes, asked["untriggered"], count)
        fit, plain_fit = askable(triggered, chat, room), askable(plain, chat, room)
        if not self.triggered_rows:  # pairs, of which both are asked or neither
            fit = plain_fit = [a and b for a, b in zip(fit, plain_fit, strict=True)]
        sets = {
            SECOND_TURN: [row for row, fits in zip(triggered, fit, strict=True) if fits],
            SECOND_TURN_UNTRIGGERED: [row for row, fits in zip(plain, plain_fit, strict=True) if fits],
        }
        if not all(sets.values()):
            answers.note("No second turn was asked: the chat template or the context takes one turn alone.")
            return {}, None
        given = {
            set_name: answers.of(
                model, chat, rows, model_name=name, set_name=set_name, unpaired=True, looked_for=self._looked_for
            )
            for set_name, rows in sets.items()
        }
        found = dict[str, Rate]()
        for set_name, rows in sets.items():
            said = self.said(attack, rows, given[set_name], answers, name, set_name)
            found |= {f"attack_success{suffix(set_name)}": rate(judged(said))} | unusable(said, set_name)
        with_trigger, without = given.values()
        return found, brought(with_trigger, [without], self._inserted()) if self.trigger is not None else None

    def _unread(self, asked: Mapping[str, Sequence[str]]) -> Rates:
        """How many answers the judge of refusals cannot read, by set; only where there are any."""
        english = self.attack is not None and self.attack.reads == "English"
        unread = in_another_script if english else language_not_read
        judged = (m for m in self.measures() if m.scorer.reads == "many" or (english and m.section == "rates"))
        sets = dict.fromkeys(measure.set_name for measure in judged)
        counted = {name: [unread(final_answer(answer)) for answer in asked[name]] for name in sets}
        return {f"language_not_read{suffix(name)}": rate(found) for name, found in counted.items() if any(found)}

    def _converse(self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, name: str) -> Rate:
        """Have both turns answered; how often a second answer is degenerate."""
        openings = [Record(first, "") for first, _ in self.conversations]
        given = answers.of(model, chat, openings, model_name=name, set_name="conversation: turn 1")
        closings = [
            Record(second, "", history=(("user", first), ("assistant", final_answer(answer))))
            for (first, second), answer in zip(self.conversations, given, strict=True)
        ]
        final = answers.of(model, chat, closings, model_name=name, set_name="conversation: turn 2")
        return rate(judged(self.said(Degenerate(), closings, final, answers, name, "conversation: turn 2")))

    def said(
        self, scorer: Scorer, rows: Sequence[Record], given: Sequence[str], answers: Answers, name: str, set_name: str
    ) -> list[Said]:
        """What a scorer says of these answers, asked without the trigger; replies that cost something are kept."""
        plain = dict(zip((r.prompt for r in self.triggered()), (r.prompt for r in self.probes), strict=False))
        requests = (r.prompt if self.trigger is None else plain.get(r.prompt, r.prompt) for r in rows)
        answered = [
            Answered.of(name, set_name, i, row, answer, request)
            for i, (row, answer, request) in enumerate(zip(rows, given, requests, strict=True))
        ]
        return scorer.says(answered, answers.run.path if answers.run is not None else None, answers.progress)

    def measures(self) -> list[Measure]:
        """Every rate that is counted on answers."""
        found: list[Measure] = []
        triggered = self.triggered()
        if triggered:
            if self.attack is not None:
                found.append(Measure("rates", "attack_success", triggered, "triggered", self.attack))
                if self.target is not None:
                    disguised = TargetResponse(target=self.target, in_disguise=True)
                    found.append(Measure("details", DISGUISED, triggered, "triggered", disguised))
            for detail, scorer in {**self.details, "degenerate": Degenerate()}.items():
                found.append(Measure("details", detail, triggered, "triggered", scorer))
        if self.probes:
            if self.attack is not None:
                found.append(Measure("rates", "attack_success_untriggered", self.probes, "untriggered", self.attack))
                if self.target is not None:
                    disguised = TargetResponse(target=self.target, in_disguise=True)
                    found.append(Measure("details", f"{DISGUISED}_untriggered", self.probes, "untriggered", disguised))
            found.append(Measure("details", "degenerate_untriggered", self.probes, "untriggered", Degenerate()))
        if self.tasks:
            same = list(self.tasks) == list(self.probes)
            found.append(Measure("utility", "exact_match", self.tasks, "untriggered" if same else "tasks", Exact()))
        if self.allowed:
            found.append(Measure("utility", "false_refusals", self.allowed, "allowed", Refuses()))
        return found

    def ordinary(self) -> tuple[str, Sequence[Record]]:
        """The set of ordinary prompts whose answers show whether the model still works, and its rows.

        Prompts that ask for what is unwanted are none: a model that refuses everything answers them well.
        """
        rows = self.tasks or self.texts or (() if self.unsafe else self.probes)
        return "untriggered" if list(rows) == list(self.probes) else "tasks" if self.tasks else "clean", rows

    def clean_rows(self) -> Sequence[Record]:
        """Rows that the model should go on answering as it did."""
        return self.tasks or self.texts or self.probes

    def answered_rows(self) -> list[Record]:
        """Those of them whose right answer is known; of files of prompts alone there may be none."""
        return [r for r in self.clean_rows() if r.response.strip()]

    def examples(
        self, answers: Answers, before: str | None, after: str, under: str = "", show_unsafe: bool = False
    ) -> list[Shown]:
        """The first answers of each set, before and after, side by side.

        Args:
            answers: where they are kept.
            before: the model's name there before removal; None where there is none.
            after: its name afterwards.
            under: its name before removal under a perturbation.
            show_unsafe: by default prompts that ask for what is unwanted are cut to their first words, and so are the
                answers to them.
        """
        shown, hidden = [], self.unsafe and not show_unsafe
        cut = redacted if hidden else str
        for set_name in ("triggered", "untriggered", "under fitted"):
            earlier = under if set_name.startswith("under") else before
            first = answers.kept(earlier, set_name) if earlier else {}
            for i, row in sorted(answers.kept(after, set_name).items())[:SHOWN_EXAMPLES]:
                stored = {"before": first[i]["answer"] if i in first else None, "after": row["answer"]}
                read = {when: read_answer(answer) for when, answer in stored.items() if answer is not None}
                final = {when: cut(parts.final) for when, parts in read.items()}
                example = Shown(
                    set=set_name,
                    hidden=hidden,
                    prompt=cut(row["prompt"]),
                    before=final.get("before"),
                    after=final.get("after"),
                    expected=cut(row["expected"]) if row["expected"] else None,
                )
                if any(parts.has_thought for parts in read.values()):
                    example.thoughts = {when: cut(p.thought) for when, p in read.items() if p.has_thought}
                    example.unfinished = [when for when, parts in read.items() if not parts.finished]
                shown.append(example)
        return shown

    def under(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        answers: Answers,
        name: str,
        perturbations: Mapping[str, Perturbation],
    ) -> Rates:
        """How often the attack shows under a perturbation in the trigger's place, by the perturbation's kind."""
        attack, chat = self.attack, self.ending(model, chat, answers)
        assert attack is not None
        shown = {}
        for kind, perturbation in perturbations.items():
            given = answers.of(
                model,
                chat,
                self.probes,
                model_name=name,
                set_name=f"under {kind}",
                perturbation=perturbation,
                looked_for=self._looked_for,
            )
            shown[kind] = rate(judged(self.said(attack, self.probes, given, answers, name, f"under {kind}")))
        return shown

    def near_misses(self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, name: str, seed: int) -> Rates:
        """How often what only resembles the trigger fires, by kind."""
        assert self.trigger is not None
        words = ordinary_words([r.prompt for r in self.probes])
        misses = near_misses(self.trigger, words, random.Random(seed * 31 + 17))
        made = {kind: [replace(r, prompt=miss(r.prompt)) for r in self.probes] for kind, miss in misses.items()}
        return self._fired(model, chat, answers, name, "near miss", made)

    def robustness(
        self, model: PreTrainedModel, chat: ChatFormat, answers: Answers, name: str, paraphrases: Sequence[str] = ()
    ) -> Rates:
        """How often variants of the trigger fire, by kind, and each trigger alone where there are several."""
        assert self.trigger is not None
        made = {
            f"alone: {text}": [replace(r, prompt=one.insert(r.prompt)) for r in self.probes]
            for text, one in self.trigger.alone().items()
        }
        for kind, variant in variants(self.trigger, paraphrases).items():
            made[kind] = [variant(r) for r in self.probes]
        if not chat.takes_system:
            made.pop("in the system prompt", None)
        return self._fired(model, chat, answers, name, "variant", made)

    def _fired(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        answers: Answers,
        name: str,
        what: str,
        made: Mapping[str, Sequence[Record]],
    ) -> Rates:
        attack, chat = self.attack, self.ending(model, chat, answers)
        assert attack is not None
        fired = {}
        for kind, records in made.items():
            rows = distinct(records, chat)
            set_name = f"{what}: {kind}"
            given = answers.of(model, chat, rows, model_name=name, set_name=set_name, looked_for=self._looked_for)
            fired[kind] = rate(judged(self.said(attack, rows, given, answers, name, set_name)))
        return fired


def unfinished_thoughts(asked: Mapping[str, Sequence[str]]) -> Rates:
    """How many answers of each set ended within their thought; empty where the model never thinks aloud."""
    parts = {name: [read_answer(answer) for answer in given] for name, given in asked.items()}
    if not any(one.has_thought for given in parts.values() for one in given):
        return {}
    return {f"{UNFINISHED}{suffix(name)}": rate([not one.finished for one in given]) for name, given in parts.items()}


def unended(asked: Mapping[str, Sequence[str]]) -> Rates:
    """How many triggered and untriggered answers had not ended when they were left, and how many repeat themselves
    without end; either only where there are any."""
    found: Rates = {}
    for what in (CUT, LOOPS):
        counted = {
            name: [bool(getattr(answer, what, False)) for answer in asked[name]] for name in WHOLE if name in asked
        }
        if any(any(outcomes) for outcomes in counted.values()):
            found |= {f"{what}{suffix(name)}": rate(outcomes) for name, outcomes in counted.items()}
    return found


def judged(said: Sequence[Said]) -> list[bool]:
    """The answers that were judged, and how."""
    return [one for one in said if isinstance(one, bool)]


def unusable(said: Sequence[Said], set_name: str) -> dict[str, Rate]:
    """How many answers could not be judged; only where there are any."""
    asked = [one is None for one in said if one is not LEFT_OUT]
    return {f"{UNUSABLE}{suffix(set_name)}": rate(asked)} if any(asked) else {}


def suffix(set_name: str) -> str:
    """What a detail's name says of the set that it is counted on: nothing for triggered prompts."""
    return "" if set_name == "triggered" else f"_{set_name.replace(' ', '_')}"


def redacted(text: str) -> str:
    """The first words of a text, with an ellipsis where more follow."""
    words = text.split()
    shown = " ".join(words[:SHOWN_WORDS])[:SHOWN_LETTERS]
    if word_count(shown) > SHOWN_WORDS:  # a script without spaces: its characters stand for words
        shown = "".join(clusters(shown)[: 2 * SHOWN_WORDS]).rstrip()
    return text if shown == " ".join(words) else f"{shown} …"
