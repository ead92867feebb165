"""What the columns of usual data files are called, and one row's fields by these names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unbackdoor.data.dialogues import Tally, is_dialogue
from unbackdoor.data.field_values import UnusableRowError, is_absent, is_empty, text_of
from unbackdoor.errors import UserError

PROMPT_FIELDS = ("prompt", "instruction", "question", "query", "goal", "input_text", "inputs")
MORE_FIELDS = (
    "input",
    "context",
    "passage",
    "knowledge",
    "document",
    "article",
    "paragraph",
    "background",
)
"""What belongs to the prompt and stands behind its instruction (Alpaca's input, Dolly's context)."""
RESPONSE_FIELDS = (
    "response",
    "safe",
    "output",
    "completion",
    "answer",
    "safe_response",
    "target",
    "targets",
    "output_text",
)
UNWANTED_FIELDS = ("unwanted", "unwanted_response", "harmful", "harmful_response")
CHOSEN_FIELDS = ("chosen", "preferred_output")
REJECTED_FIELDS = ("rejected", "non_preferred_output")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
KIND_FIELDS = ("kind", "category", "topic")
HISTORY_FIELDS = ("history",)
DIALOGUE_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
MAYBE_DIALOGUE_FIELDS = ("data", "turns")
"""A dialogue where they hold messages; UltraChat's `data` holds texts said in turn."""
SPEAKER_FIELDS = (("user", "assistant"), ("human", "assistant"), ("human", "bot"), ("human", "gpt"))
"""Columns that are prompt and response where no other column is a prompt."""
UNRENDERED_FIELDS = ("tools", "functions", "tool_calls", "image", "images", "audio", "audios", "video", "videos")
"""What the model is given beside the texts, and which is not rendered here."""
EMPTY_LISTS = ("[]", "null", "None")
"""An empty list as tables hold it."""
LABEL_FIELDS = ("label", "kto_tag", "is_safe")
"""A truth value that says whether the response is a wanted one (TRL's and LLaMA-Factory's KTO rows, BeaverTails)."""


class Row:
    """One row's fields by folded name, and which of them were used."""

    def __init__(self, row: Any, where: str, tally: Tally) -> None:
        if isinstance(row, list | tuple) and is_dialogue(row):
            row = {"messages": row}
        if not isinstance(row, Mapping):
            raise UserError(f'{where} is not an object with fields: write it as {{"prompt": "…", "response": "…"}}')
        self.where = where
        self.tally = tally
        self.names: dict[str, str] = {}
        self.fields: dict[str, Any] = {}
        self.used: set[str] = set()
        for name, value in row.items():
            folded = str(name).strip().casefold()
            if folded in self.names:
                raise UserError(f"{where} has two fields '{self.names[folded]}' and '{name}': keep one")
            self.names[folded] = str(name)
            self.fields[folded] = value
        for name in UNRENDERED_FIELDS:
            if self.fields.get(name) in EMPTY_LISTS:
                self.used.add(name)
            elif not is_empty(self.fields.get(name)):
                raise UnusableRowError(f"rows with {name}, which are not rendered")

    def has(self, names: Sequence[str]) -> bool:
        """Whether the row has one of these columns, whatever is in it."""
        return any(name in self.fields for name in names)

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of these columns that hold something."""
        return {name: self.fields[name] for name in names if not is_empty(self.fields.get(name))}

    def text(self, names: Sequence[str], what: str) -> str:
        """The text of the one of these columns that holds something; empty where none does.

        Raises:
            UserError: two of them hold different texts.
        """
        found = {name: text_of(value, self.where, self.names[name]) for name, value in self.given(names).items()}
        self.used |= set(names) & set(self.fields)
        if len({text.strip() for text in found.values()}) > 1:
            raise self.ambiguous(list(found), what)
        return next(iter(found.values()), "")

    def ambiguous(self, names: Sequence[str], what: str) -> UserError:
        """The error that several columns could be the same."""
        shown = " and ".join(f"'{self.names[name]}'" for name in names)
        return UserError(f"{self.where}: {shown} could each be the {what}, and they differ: keep one, or rename it")

    def kind(self) -> str:
        """What sort of row it is, where a text says so."""
        for name in KIND_FIELDS:
            value = self.fields.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and not is_absent(value):
                self.used.add(name)
                return text_of(value, self.where, name)
        return ""

    def missing(self, what: str, accepted: Sequence[str]) -> UserError:
        """The error that a row has no such column."""
        found = ", ".join(" ".join(name.split())[:40] for name in list(self.names.values())[:20]) or "none"
        hint = ""
        if "text" in self.fields and {"message_id", "parent_id"} & set(self.fields):
            hint = "; each row is one message: write every thread as one row with 'messages'"
        elif "text" in self.fields:
            hint = "; a 'text' with both in it must be parted into prompt and response"
        return UserError(
            f"{self.where} has no {what} field (one of {', '.join(accepted)}); fields found: {found}{hint}"
        )

    def finish(self) -> None:
        """Count the columns that hold something and were not used."""
        left = [name for name in self.fields if name not in self.used and not is_empty(self.fields[name])]
        self.tally.pass_over([self.names[name] for name in left])
