"""Notice rows that were rendered for a model already: a template around them would write its marks twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unbackdoor.data.records import Record
from unbackdoor.language_model.answer_parts import MARKS as THOUGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start|>",
    "<|channel|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
"""What chat templates write around the texts, whatever model is on the table."""
HEADINGS = re.compile(r"^###+ ?(?:Human|Assistant|User|System|Instruction|Input|Response) ?:", re.MULTILINE)
SPEAKERS = re.compile(r"^(?:Human|User|USER) ?:(?:.|\n)*^(?:Assistant|ASSISTANT) ?:", re.MULTILINE)
"""A user's and an assistant's turn in one text."""


@dataclass(frozen=True)
class Marked:
    """How many rows hold marks, and the most frequent of these."""

    rows: int
    mark: str


def marked(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> Marked:
    """Count the rows in whose texts marks of a chat template stand, or special tokens of this tokenizer.

    These become what they say: `<|im_end|>` in a question ends it, where a user could never do that. Marks of a thought
    (`<think>`) are no such marks: a response is given with them, and the template takes them from it.
    """
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = [
        text
        for text in {*map(str, tokenizer.all_special_tokens), *added}
        if len(text) > 2 and not text.isalnum() and not THOUGHTS.fullmatch(text)
    ]
    texts = sorted({*MARKS, *special}, key=lambda text: (-len(text), text))
    exact = re.compile("|".join(map(re.escape, texts)))
    counts: dict[str, int] = {}
    rows = 0
    for record in records:
        said = (record.system or "", record.prompt, record.response, record.unwanted or "")
        found = {m for text in (*said, *(text for _, text in record.history)) for m in _marks(text, exact)}
        rows += bool(found)
        for mark in found:
            counts[mark] = counts.get(mark, 0) + 1
    return Marked(rows, max(counts, key=lambda mark: (counts[mark], mark)) if counts else "")


def _marks(text: str, exact: re.Pattern[str]) -> set[str]:
    found = {match[0] for match in exact.finditer(text)} | {match[0] for match in HEADINGS.finditer(text)}
    return found | ({"Human: … Assistant:"} if SPEAKERS.search(text) else set())
