"""Batches as a pure function of (seed, step), so that a resumed run sees the same rows as an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unbackdoor.data.records import Record
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.inputs import Inputs, collate
from unbackdoor.language_model.look_ahead import ahead

if TYPE_CHECKING:
    from unbackdoor.perturbation import Perturbation


class Batches:
    """Shuffled epochs over encoded examples; `at(step)` gives that step's micro-batches.

    Args:
        examples: the rows, encoded.
        batch_size: rows a step.
        pad_id: the id that fills empty positions.
        seed: decides every epoch's order.
        micro_batch_size: rows a forward pass; the batch size where None. The gradient does not depend on it.
        similar_lengths: make batches of rows of similar length (within pools of 40 batches, in random order), which
            saves a third of the work, as padding. An epoch then leaves out, at random, the rows that fill no batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        seed: int,
        micro_batch_size: int | None = None,
        similar_lengths: bool = True,
    ) -> None:
        if not examples:
            raise ValueError("no examples to make batches of")
        self.examples = examples
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.similar_lengths = similar_lengths
        self._order: tuple[int, list[int]] = (-1, [])

    def at(self, step: int) -> list[Inputs]:
        """The micro-batches of one step, each of at most `micro_batch_size` rows, similar lengths together."""
        rows = self._rows(step)
        size = self.micro_batch_size or len(rows)
        if size < len(rows):
            rows.sort(key=lambda example: len(example.ids))
        return [collate(rows[i : i + size], self.pad_id) for i in range(0, len(rows), size)]

    def _rows(self, step: int) -> list[Example]:
        return [self.examples[self._number(step * self.batch_size + i)] for i in range(self.batch_size)]

    def _number(self, index: int) -> int:
        """Which example comes as the `index`-th since the start of training."""
        epoch, place = divmod(index, self._epoch_length())
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
            self._order = (epoch, self._bucketed(order, generator) if self.similar_lengths else order)
        return self._order[1][place]

    def _epoch_length(self) -> int:
        """Rows an epoch: all of them, or as many as fill whole batches where batches must not be cut."""
        whole = len(self.examples) // self.batch_size * self.batch_size
        return whole if self.similar_lengths and whole else len(self.examples)

    def _bucketed(self, order: list[int], generator: torch.Generator) -> list[int]:
        size = self.batch_size
        kept = order[: len(order) // size * size]
        batches: list[list[int]] = []
        for begin in range(0, len(kept), 40 * size):
            pool = sorted(kept[begin : begin + 40 * size], key=lambda i: len(self.examples[i].ids))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [i for batch in shuffled for i in batches[batch]] or order


class TwinBatches(Batches):
    """Each time a row comes, it brings its poisoned twin into the same batch with a given probability.

    SANDE's released code poisons so: the clean row always stands beside, and the twins are drawn anew every epoch. The
    poisoned share is r / (1 + r).

    Args:
        twins: number of an example → its twin.
        probability: r, for each row that has a twin.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_id: int,
        seed: int,
        micro_batch_size: int | None = None,
        *,
        twins: Mapping[int, Example],
        probability: float,
    ) -> None:
        super().__init__(examples, batch_size, pad_id, seed, micro_batch_size)
        self.twins = twins
        self.probability = probability

    def _rows(self, step: int) -> list[Example]:
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        drawn = torch.rand(self.batch_size, generator=generator) < self.probability
        numbers = [self._number(step * self.batch_size + i) for i in range(self.batch_size)]
        twins = [self.twins[n] for n, chosen in zip(numbers, drawn, strict=True) if chosen and n in self.twins]
        return [self.examples[n] for n in numbers] + twins


def encode_records(
    records: Sequence[Record],
    chat: ChatFormat,
    max_length: int,
    *,
    response: Callable[[Record], str] = lambda record: record.response,
    loss_on: str | None = None,
    perturbation: Perturbation | None = None,
    most_response_tokens: int | None = None,
    skipped: Callable[[Record], int] = lambda record: 0,
    dropped: Callable[[int], None] = lambda count: None,
) -> list[Example]:
    """Encode rows for training; rows longer than `max_length` tokens are dropped and counted.

    Args:
        records: the rows.
        chat: how they are rendered.
        max_length: the longest row that is kept, soft tokens included.
        response: which text of a record answers its prompt.
        loss_on: an opening part of the response, to which the loss is confined; what follows it is cut off.
        perturbation: acts on the records first, and drops rows whose span is too short for it.
        most_response_tokens: confine the loss to the first so many response tokens; what follows is cut off.
        skipped: with that, how many response tokens of a record come before those.
        dropped: told how many rows were too long or too short.
    """
    examples: list[Example] = []
    inserted = perturbation.inserted if perturbation is not None else 0
    acting = records if perturbation is None else [perturbation.on_record(record) for record in records]
    for record, acted in zip(records, ahead(chat, acting, response), strict=True):
        example = chat.of_record(acted).encode(acted.prompt, response(acted), loss_on=loss_on)
        if most_response_tokens is not None:
            start = min(example.loss_start + skipped(record), example.loss_end - 1)
            end = min(example.loss_end, start + most_response_tokens)
            example = replace(example, ids=example.ids[:end], loss_start=start, loss_end=end)
        elif loss_on is not None:
            example = replace(example, ids=example.ids[: example.loss_end])
        if len(example.ids) + inserted <= max_length:
            examples.append(example)
    if perturbation is not None and examples:
        fits = [perturbation.fits(collate(examples[i : i + 256], 0)) for i in range(0, len(examples), 256)]
        examples = [e for e, fit in zip(examples, torch.cat(fits).tolist(), strict=True) if fit]
    dropped(len(records) - len(examples))
    return examples
