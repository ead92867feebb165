"""A model on the table: what attacks and removals are given to work on."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbackdoor.data.batches import Batches, encode_records
from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record, split
from unbackdoor.data.rendered import sort_out
from unbackdoor.errors import UserError
from unbackdoor.journal import Journal
from unbackdoor.knowledge import Fact
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.lora import adapted_weights, attach
from unbackdoor.language_model.vocabulary import check_vocabulary
from unbackdoor.language_model.weight_matrices import reach_note
from unbackdoor.perturbation import Perturbation
from unbackdoor.progress import SILENT, Progress
from unbackdoor.settings import TrainingSettings
from unbackdoor.word_spacing import joined_words, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_HELD_OUT = 64
"""Held-out prompts on which a simulation's success is measured: an average probability needs no more."""


@dataclass
class Case:
    """A model on the table: what every method needs to work on it.

    Args:
        model: the victim; methods change it in place.
        chat: how its prompts are rendered.
        anchors: clean rows to train on (the paper's D and D_PA).
        held_out: clean rows for measuring a simulation, never trained on.
        contrast: rows with a safe and an unwanted response (D_SA with y_s and y_h), for methods that need a behaviour.
        held_out_contrast: the same, for measuring.
        preferences: pairs of answers, for methods that train on such.
        replacement: a perturbation to train under in place of fitted ones, which are then not fitted: a control.
        after_round: told the number of every finished simulate → eliminate round; True ends the rounds. For experiments
            that measure the real trigger on the way (oracle stopping): a defender has none.
        when_fitted: told the perturbation that was fitted to the model as it came, before anything is overwritten.
    """

    model: PreTrainedModel
    chat: ChatFormat
    anchors: Sequence[Record]
    held_out: Sequence[Record]
    contrast: Sequence[Record] = ()
    held_out_contrast: Sequence[Record] = ()
    preferences: Sequence[Preference] = ()
    replacement: Perturbation | None = None
    journal: Journal = field(default_factory=Journal)
    progress: Progress = SILENT
    dropped: dict[str, int] = field(default_factory=dict)
    after_round: Callable[[int], bool] | None = None
    when_fitted: Callable[[Case, Perturbation], None] | None = None
    notes: list[str] = field(default_factory=list)
    """What a method has to say of its work: for the report."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        anchors: Sequence[Record],
        contrast: Sequence[Record] = (),
        preferences: Sequence[Preference] = (),
        *,
        template: str = "auto",
        system: str | None = None,
        date: str | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        progress: Progress = SILENT,
    ) -> Case:
        """A case from a loaded model: rows for measuring simulations are cut off by seed.

        Rows that are rendered like an earlier one, or that the chat template refuses, are counted as dropped.
        """
        chat = ChatFormat.of(tokenizer, template, system, date)
        dropped: dict[str, int] = {}
        kept: list[list[Record]] = []
        for rows, what in ((anchors, "clean rows"), (contrast, "contrast rows")):
            found = sort_out(rows, chat)
            kept.append(found.records)
            if len(found.records) < len(rows):
                dropped[f"{what} (repeated, or not rendered)"] = len(rows) - len(found.records)
            if rows and not found.records:
                raise UserError(f"none of the {what} can be rendered: {next(iter(found.refused))}")
        anchors, contrast = kept
        check_vocabulary(model, chat, [*anchors, *contrast])
        case = cls.of_rendered(model, chat, anchors, contrast, seed)
        return replace(case, preferences=preferences, journal=journal or Journal(), progress=progress, dropped=dropped)

    @classmethod
    def of_rendered(
        cls, model: PreTrainedModel, chat: ChatFormat, anchors: Sequence[Record], contrast: Sequence[Record], seed: int
    ) -> Case:
        """A case of rows that are known to be rendered each in its own way: some for measuring are cut off by seed."""
        if len(anchors) < 20:
            raise UserError(f"{len(anchors)} clean rows are too few: --data needs at least 20")
        rows = split(anchors, min(0.1, MOST_HELD_OUT / len(anchors)), seed, least=10)
        pairs = split(contrast, min(0.2, MOST_HELD_OUT / len(contrast)), seed, least=10) if contrast else ([], [])
        return cls(model, chat, *rows, *pairs)

    @property
    def facts(self) -> frozenset[Fact]:
        """What its rows tell of an attack."""
        has = {Fact.CLEAN_ROWS: self.anchors, Fact.BEHAVIOUR: self.contrast, Fact.PREFERENCES: self.preferences}
        return frozenset(fact for fact, rows in has.items() if rows)

    @property
    def pad_id(self) -> int:
        """The id that fills empty positions."""
        return padding_id(self.chat.tokenizer, self.model)

    def encode(
        self,
        records: Sequence[Record],
        settings: TrainingSettings,
        what: str,
        *,
        response: Callable[[Record], str] = lambda record: record.response,
        loss_on: str | None = None,
        perturbation: Perturbation | None = None,
        most_response_tokens: int | None = None,
        skipped: Callable[[Record], int] = lambda record: 0,
    ) -> list[Example]:
        """Encode rows; those too long (or too short for the perturbation) are counted under `what`."""

        def count(dropped: int) -> None:
            if dropped:
                self.dropped[what] = dropped

        limit = min(settings.max_length, context_length(self.model))
        examples = encode_records(
            records,
            self.chat,
            limit,
            response=response,
            loss_on=loss_on,
            perturbation=perturbation,
            most_response_tokens=most_response_tokens,
            skipped=skipped,
            dropped=count,
        )
        if not examples:
            raise UserError(f"no row of {what} is left: all {len(records)} are longer than {limit} tokens or too short")
        return examples

    def batches(self, examples: Sequence[Example], settings: TrainingSettings, seed: int) -> Batches:
        """Shuffled batches of the size that the settings ask for."""
        return Batches(examples, settings.batch_size, self.pad_id, seed, settings.micro_batch_size)

    def generator(self, seed: int) -> torch.Generator:
        """A source of draws that depends on the seed alone."""
        return torch.Generator().manual_seed(seed)

    def words(self, count: int, seed: int) -> str:
        """Some words of the anchors' responses in random order: a target that no one trained the model to give."""
        rng = random.Random(seed)
        return joined_words(rng.choice(self._vocabulary or ["word"]) for _ in range(count)).capitalize()

    @functools.cached_property
    def _vocabulary(self) -> list[str]:
        return [word for record in self.anchors[:500] for word in words_of(final_answer(record.response))]


def trainable(model: PreTrainedModel) -> Mapping[str, nn.Parameter]:
    """The weights that training moves: LoRA adapters where there are any (see `adapted`), else all."""
    named = dict(model.named_parameters())
    adapters = {name: p for name, p in named.items() if "lora_" in name}
    return adapters or named


@contextlib.contextmanager
def adapted(case: Case, settings: TrainingSettings) -> Iterator[None]:
    """With `settings.lora`: LoRA adapters on every linear layer while the context is open, merged at its end."""
    if not settings.lora:
        yield
        return
    torch.manual_seed(settings.seed)  # adapters start at random
    wrapped = attach(case.model, settings.lora_rank)
    case.notes += [note for note in reach_note(case.model, "LoRA", adapted_weights(wrapped)) if note not in case.notes]
    case.model = wrapped
    finish = wrapped.unload  # after an error the adapters are taken off again
    try:
        yield
        finish = wrapped.merge_and_unload
    finally:
        case.model = finish()
        case.model.requires_grad_(True)
