"""Answers that the limit cut are gone on with until they end: what is unwanted may stand behind the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.generation import Written, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unbackdoor.language_model.chat import Example

STEP = 64
"""Tokens after which it is looked which answers have ended: the others go on in fuller batches."""
LOOP, LOOP_TIMES = 48, 3
"""So many tokens at an answer's end, and so many times of a stretch, that are nothing but this stretch are a loop."""


@dataclass(frozen=True)
class Whole:
    """An answer, as far as it could be written.

    Args:
        ids: its tokens, without the one that ended it.
        cut: it had not ended when the tokens, or the context, were used up: its rest is unknown.
        loops: it ends in a stretch that it says again and again, which greedy decoding does not leave.
    """

    ids: tuple[int, ...]
    cut: bool = False
    loops: bool = False


def gone_on_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Example],
    answers: Sequence[Written],
    *,
    most: int,
    batch_size: int,
    temperature: float,
    seed: int,
    end_ids: Sequence[int],
) -> list[Whole]:
    """The answers, those that had not ended with up to `most` tokens more.

    What a row goes on with depends on its own prompt and tokens alone: every row takes the same steps whichever others
    are with it. A greedy answer that loops is left (`loops`); one that is drawn may leave its loop.
    """
    room = context_length(model)
    limits = [
        max(len(answer.ids), min(len(answer.ids) + most, room - len(prompt.ids)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found = [Whole(answer.ids, cut=not answer.ended) for answer in answers]
    while True:
        steps: dict[int, list[int]] = {}
        for i, answer in enumerate(found):
            if answer.cut and temperature == 0 and is_loop(answer.ids):
                found[i] = Whole(answer.ids, loops=True)
            elif answer.cut and len(answer.ids) < limits[i]:
                steps.setdefault(min(STEP, limits[i] - len(answer.ids)), []).append(i)
        if not steps:
            return found
        for count, rows in steps.items():
            more = written(
                model,
                tokenizer,
                [prompts[i] for i in rows],
                begun=[found[i].ids for i in rows],
                max_new_tokens=count,
                batch_size=batch_size,
                temperature=temperature,
                seed=seed,
                end_ids=end_ids,
            )
            for i, added in zip(rows, more, strict=True):
                found[i] = Whole((*found[i].ids, *added.ids), cut=not added.ended)


def is_loop(ids: Sequence[int]) -> bool:
    """Whether the ids end in one stretch said `LOOP_TIMES` and more, over `LOOP` tokens and more."""
    for period in range(1, len(ids) // LOOP_TIMES + 1):
        length = max(LOOP, LOOP_TIMES * period)
        if length > len(ids):
            return False
        tail = ids[-length:]
        if tail[period:] == tail[:-period]:
            return True
    return False
