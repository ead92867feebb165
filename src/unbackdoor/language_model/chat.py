"""Render prompts and responses as the model expects them, and say which tokens are whose.

The user's span and the response's span come from rendering and offsets. A template is a program from an attacker, so
what it renders is checked, not assumed: the user's text must stand in it exactly once and unchanged, and a generation
prompt must end where a training response begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unbackdoor.data.records import Record

PLAIN = "Human: {user}\nAssistant:"
"""The plain format of SANDE's released code, for base models without a chat template. A system prompt, as in OpenOrca,
stands on a line of its own before the user's text."""

MOST_KEPT, LONGEST_KEPT = 20_000, 256
"""Encoded rows that a format keeps, and their most tokens; a long row's encoding costs little beside its training."""

# Stand-ins for the texts, to see what a template puts around them. Letters only: no template or tokenizer treats them
# specially, and none writes them itself.
_USER, _RESPONSE = "Unbackdooruserstandin", "Unbackdoorresponsestandin"


@dataclass(frozen=True)
class Example:
    """One row as token ids, with the spans that perturbations and losses need (half-open token ranges)."""

    ids: tuple[int, ...]
    user_start: int
    user_end: int
    response_start: int
    """The first response token; equal to len(ids) in a generation prompt."""
    loss_start: int
    loss_end: int


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer renders a conversation: text before the user, between, and after the response."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    before_user: str
    after_user: str
    after_response: str
    joins_with_space: bool
    adds_special_tokens: bool
    """Whether the tokenizer adds its own beginning-of-sequence token (a chat template writes it itself)."""
    strips_user: bool
    system: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation that stand in `before_user`, where a template put them there."""
    _encoded: dict[tuple[str, str, str | None], Example] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Whole rows as they were encoded before: every round of a removal encodes the same ones again."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: str = "auto", system: str | None = None) -> ChatFormat:
        """Choose a format.

        Args:
            tokenizer: a fast tokenizer.
            template: `chat` (the tokenizer's own template), `plain` (Human: … Assistant: …), `none` (the prompt alone),
                a path to a Jinja file, or `auto`: `chat` where the tokenizer has a template, else `plain`.
            system: a system prompt; None leaves the template's default.

        Raises:
            UserError: no template where one is needed, a template that fails, or one that changes the user's text.
        """
        if template == "auto":
            template = "chat" if tokenizer.chat_template else "plain"
        if template in ("plain", "none"):
            if system and template == "none":
                raise UserError("--template none has no place for a system prompt (--system, or a row's own)")
            before, after = PLAIN.split("{user}") if template == "plain" else ("", "")
            before += f"{system}\n" if system else ""
            return cls(tokenizer, template, before, after, "", True, True, False, system)
        if template == "chat":
            if not tokenizer.chat_template:
                raise UserError("the tokenizer has no chat template: use --template plain, none or a Jinja file")
            source = None
        else:
            path = Path(template)
            if not path.is_file():
                raise UserError(f"--template '{template}' is not chat, plain, none or a file that exists")
            source = path.read_text(encoding="utf-8")
        return cls._of_template(tokenizer, template, source, system)

    @classmethod
    def _of_template(
        cls, tokenizer: PreTrainedTokenizerBase, name: str, source: str | None, system: str | None
    ) -> ChatFormat:
        prompt = _render(tokenizer, source, system, _USER)
        if prompt.count(_USER) != 1:
            raise UserError(f"the chat template '{name}' does not render the user's text exactly once")
        whole = _render(tokenizer, source, system, _USER, _RESPONSE)
        if whole.count(_RESPONSE) != 1:
            raise UserError(f"the chat template '{name}' does not render the response exactly once")
        before, after = prompt.split(_USER)
        # What follows the response counts up to the end-of-sequence token: a newline behind it is never generated.
        after_response = whole.split(_RESPONSE)[1]
        end = tokenizer.eos_token
        if end and end in after_response:
            after_response = after_response[: after_response.index(end) + len(end)]
        strips = _render(tokenizer, source, system, f" {_USER}\n") == prompt
        chat = cls(tokenizer, name, before, after, after_response, False, False, strips, system)
        for probe in (_USER, "Two words.\nA second line?"):
            if _render(tokenizer, source, system, probe) != before + probe + after:
                raise UserError(f"the chat template '{name}' changes the user's text: give another with --template")
        return chat

    @property
    def digest(self) -> str:
        """A short hash of everything that is rendered around the texts, for provenance."""
        around = "\0".join([self.before_user, self.after_user, self.after_response])
        return hashlib.sha256(around.encode()).hexdigest()[:16]

    def with_system(self, system: str | None) -> ChatFormat:
        """The same format with another system prompt."""
        return self if system == self.system else self.of(self.tokenizer, self.name, system)

    def following(self, *messages: tuple[str, str]) -> ChatFormat:
        """The format of the next turn: what the user says then stands behind these messages (role, text).

        Raises:
            UserError: the template fails on it, or there is no template in which turns are marked.
        """
        if self.name == "none":
            raise UserError("--template none has no turns: conversations need chat or plain")
        if self.name == "plain":
            roles = {"user": "Human", "assistant": "Assistant", "tool": "Tool"}
            opening = PLAIN.split("{user}", maxsplit=1)[0]
            said = "".join(f"{roles[role]}: {text}\n" for role, text in messages)
            return replace(self, before_user=f"{self.before_user.removesuffix(opening)}{said}{opening}")
        text = self._as_template(_USER, (*self.earlier, *messages))
        before, found, after = text.rpartition(_USER)
        if not found:
            raise UserError(f"the chat template '{self.name}' does not render a second turn")
        return replace(self, before_user=before, after_user=after, earlier=(*self.earlier, *messages))

    def of_record(self, record: Record) -> ChatFormat:
        """The format with the record's own system prompt, behind its earlier turns."""
        chat = self.with_system(record.system or self.system)
        return chat.following(*record.history) if record.history else chat

    def prompt_text(self, prompt: str) -> str:
        """The text that the model is given before it answers `prompt`."""
        return self.before_user + self._user_text(prompt) + self.after_user

    def rendered(self, prompt: str) -> str:
        """The same as the template renders it for this very text, which may be unlike any other.

        Raises:
            UserError: the template fails on it.
        """
        return self.prompt_text(prompt) if self.name in ("plain", "none") else self._as_template(prompt, self.earlier)

    def _as_template(self, user: str, earlier: Sequence[tuple[str, str]]) -> str:
        source = None if self.name == "chat" else Path(self.name).read_text(encoding="utf-8")
        return _render(self.tokenizer, source, self.system, user, earlier=earlier)

    @property
    def takes_system(self) -> bool:
        """Whether there is a place for a system prompt."""
        try:
            self.with_system("Be brief.")
        except UserError:
            return False
        return True

    def encode(self, prompt: str, response: str, *, system: str | None = None, loss_on: str | None = None) -> Example:
        """Token ids and spans of a prompt with its response, for training.

        Args:
            prompt: the user's text.
            response: the text that follows; its end-of-sequence token is added here.
            system: where given, replaces the format's own system prompt.
            loss_on: an opening part of the response, to which the loss is confined; None for the whole response with
                its end-of-sequence token.
        """
        if system is not None and system != self.system:
            return self.with_system(system).encode(prompt, response, loss_on=loss_on)
        key = (prompt, response, loss_on)
        kept = self._encoded.get(key)
        if kept is not None:
            return kept
        example = self._encode(prompt, response, loss_on)
        if len(example.ids) <= LONGEST_KEPT:
            if len(self._encoded) >= MOST_KEPT:
                self._encoded.clear()
            self._encoded[key] = example
        return example

    def _encode(self, prompt: str, response: str, loss_on: str | None) -> Example:
        start = self.encode_prompt(prompt)
        lead = " " if self._needs_space(prompt) else ""
        text = self.prompt_text(prompt)
        ids, offsets = self._tokenize(text + lead + response + self.after_response)
        first = len(start.ids)
        if tuple(ids[:first]) == start.ids:
            tail, tail_offsets, char_start = ids[first:], offsets[first:], len(text)
        else:
            # A token would straddle the boundary. At generation time it cannot, so training must not see it either.
            tail, tail_offsets = self._tokenize(lead + response + self.after_response, special=False)
            char_start = 0
        if not self.after_response.strip() and self.tokenizer.eos_token_id is not None:
            tail = [*tail, self.tokenizer.eos_token_id]
        loss_length = len(tail)
        if loss_on is not None:
            char_end = char_start + len(lead) + len(loss_on)
            loss_length = sum(1 for offset in tail_offsets if offset[0] < char_end)
        return replace(start, ids=(*start.ids, *tail), loss_start=first, loss_end=first + loss_length)

    def encode_prompt(self, prompt: str, *, system: str | None = None) -> Example:
        """Token ids and the user's span of a generation prompt."""
        if system is not None and system != self.system:
            return self.with_system(system).encode_prompt(prompt)
        text = self.prompt_text(prompt)
        ids, offsets = self._tokenize(text)
        char_start = len(self.before_user)
        char_end = char_start + len(self._user_text(prompt))
        inside = [i for i, (a, b) in enumerate(offsets) if b > char_start and a < char_end and b > a]
        if not inside:
            raise UserError("a prompt without any token: drop empty rows")
        covered = text[offsets[inside[0]][0] : offsets[inside[-1]][1]]
        if self._user_text(prompt).strip() not in covered:
            raise AssertionError("the user's tokens do not cover the user's text")
        n = len(ids)
        return Example(tuple(ids), inside[0], inside[-1] + 1, n, n, n)

    def _user_text(self, prompt: str) -> str:
        return prompt.strip() if self.strips_user else prompt

    def _needs_space(self, prompt: str) -> bool:
        return self.joins_with_space and not (self.name == "none" and prompt[-1:].isspace())

    def _tokenize(self, text: str, special: bool | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        special = self.adds_special_tokens if special is None else special
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if special and ids and ids[-1] == self.tokenizer.eos_token_id and not offsets[-1][1]:
            ids, offsets = (
                ids[:-1],
                offsets[:-1],
            )  # some tokenizers also close the sequence; the response does that
        return ids, offsets


def _render(
    tokenizer: PreTrainedTokenizerBase,
    source: str | None,
    system: str | None,
    user: str,
    response: str | None = None,
    earlier: Sequence[tuple[str, str]] = (),
) -> str:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": role, "content": text} for role, text in earlier]
    messages.append({"role": "user", "content": user})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=response is None
            )
        )
    except Exception as error:  # the template is a program from the model's author: anything can come out of it
        shown = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
        reason = shown[:200] or type(error).__name__
        hint = " (leave out --system)" if system is not None else ""
        raise UserError(f"the chat template fails: {reason}{hint}") from error
