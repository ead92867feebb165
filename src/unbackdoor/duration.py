"""How long a run will take on this machine: counted work times the seconds of a forward pass and of an answer.

Nothing is trained for it, and no memory is needed beyond that of answering.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import near_misses
from unbackdoor.evaluation.suite import Suite
from unbackdoor.evaluation.trigger_effect import HARMLESS
from unbackdoor.evaluation.variants import variants
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import inference, logits_of
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import collate, padding_id
from unbackdoor.settings import EvaluationSettings
from unbackdoor.workload import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKWARD = 2.5
"""A step on all weights takes so many forward passes more: two for the gradients, and the optimizer."""
BACKWARD_FROZEN = 1.2
"""The same where the weights are frozen, for a perturbation or for LoRA."""
TIMED_ROWS, TIMED_TOKENS = 8, 8


def measuring_work(suite: Suite, evaluation: EvaluationSettings | None = None) -> Work:
    """What it takes to measure one model; answers that are gone on with because they were cut are not foreseen."""
    sets = {measure.set_name: len(measure.rows) for measure in suite.measures()}
    if evaluation is not None and suite.attack is not None and {"triggered", "untriggered"} <= sets.keys():
        sets["second turns"] = 2 * min(evaluation.second_turns, sets["triggered"], sets["untriggered"])
    name, rows = suite.ordinary()
    sets |= {name: len(rows)} | ({HARMLESS: len(suite.probes)} if suite.trigger is not None else {})
    options = sum(len(q.options) for questions in suite.questions.values() for q in questions)
    return Work(read=len(suite.texts) + options, answers=sum(sets.values()) + 2 * len(suite.conversations))


def firing_work(suite: Suite, paraphrases: Sequence[str] = ()) -> Work:
    """What it takes to see what else fires: near misses of the trigger, its variants, each trigger alone."""
    if suite.trigger is None:
        return Work()
    near = near_misses(suite.trigger, ["some", "words"], random.Random(0))
    kinds = len(near) + len(variants(suite.trigger, paraphrases)) + len(suite.trigger.alone())
    return Work(answers=float(kinds * len(suite.probes)))


@dataclass(frozen=True)
class Pace:
    """Seconds a row that is read and an answer, on this machine now."""

    read: float
    answer: float

    @classmethod
    def measured(
        cls, model: PreTrainedModel, chat: ChatFormat, rows: Sequence[Record], evaluation: EvaluationSettings
    ) -> Pace:
        """From the second of two forward passes over a few rows, and a few answers cut short."""
        limit = context_length(model)
        whole = [chat.of_record(r).encode(r.prompt, r.response) for r in rows[: 4 * TIMED_ROWS]]
        prompts = [chat.of_record(r).encode_prompt(r.prompt) for r in rows[:TIMED_ROWS]]
        examples = [e for e in whole if len(e.ids) <= limit][:TIMED_ROWS] or prompts
        inputs = collate(examples, padding_id(chat.tokenizer, model)).to(next(model.parameters()).device)
        asked = inputs.loss_mask if inputs.loss_mask.any() else inputs.attention_mask.bool()
        with inference(model):
            for _ in range(2):
                begun = time.monotonic()
                float(logits_of(model, inputs, asked).sum())
                read = (time.monotonic() - begun) / len(examples)
        tokens = min(TIMED_TOKENS, evaluation.max_new_tokens)
        begun = time.monotonic()
        generate(model, chat.tokenizer, prompts, max_new_tokens=tokens, min_new_tokens=tokens)
        took = (time.monotonic() - begun) / len(prompts)
        # The prompt is read once, then come the tokens.
        token = max(took - read, 0.0) / tokens
        return cls(read, read + token * evaluation.max_new_tokens)

    def seconds(self, work: Work, *, lora: bool = False) -> float:
        """That the work takes; `lora` where only adapters are trained."""
        backward = BACKWARD_FROZEN if lora else BACKWARD
        trained = work.trained * (1 + backward) + work.fitted * (1 + BACKWARD_FROZEN)
        return (trained + work.read) * self.read + work.answers * self.answer


def sentence(least: float, most: float) -> str:
    """How long it will take, as a person says it; from seconds."""
    first, last = clock(least), clock(most)
    return f"this will take about {first if first == last else f'{first} to {last}'} on this machine"


def clock(seconds: float) -> str:
    """Seconds in words, of two digits at most."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} min" if minutes < 9.95 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 597 else f"{minutes / 60:.0f} h"
