"""Render prompts and responses as the model expects them, and say which tokens are whose.

The user's span and the response's span come from rendering and offsets. A template is a program from an attacker, so
what it renders is checked, not assumed: the user's text must stand in it exactly once and unchanged, and a training row
must begin with its generation prompt. What the template writes between that and the answer (a space, a header, an empty
thought) and behind the answer belongs to the row: the model has to write it too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unbackdoor.bounded_files import read_text
from unbackdoor.errors import UserError
from unbackdoor.language_model.answer_parts import opened_thought
from unbackdoor.language_model.decoding import texts_of
from unbackdoor.language_model.dialogue import Given, check_rendered, folded, ways
from unbackdoor.language_model.files.replacements import template_of
from unbackdoor.language_model.template import Message, Template, end_of_turn, parting
from unbackdoor.word_spacing import ends_joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unbackdoor.data.records import Record

PLAIN = "Human: {user}\nAssistant:"
"""The plain format of SANDE's released code, for base models without a chat template. A system prompt, as in OpenOrca,
stands on a line of its own before the user's text."""
PLAIN_ROLES = {"user": "Human", "assistant": "Assistant", "tool": "Tool"}

MOST_KEPT, LONGEST_KEPT = 20_000, 256
"""Encoded rows that a format keeps, and their most tokens; a long row's encoding costs little beside its training."""
MOST_FORMATS_KEPT = 1_000
"""Formats of other system prompts and earlier turns that a format keeps."""

MOST_BYTES = 2**20
"""Of a template's file."""

# Stand-ins for the texts, to see what a template puts around them. Letters only: no template or tokenizer treats them
# specially, and none writes them itself.
USER, RESPONSE, _SYSTEM = "Unbackdooruserstandin", "Unbackdoorresponsestandin", "Unbackdoorsystemstandin"

PROBE = "Two words.\nA second line?"
"""A text that a template must leave as it is."""

# One line of words, with nothing in it that a template could look for, cut off, join or escape, and not enough to
# shorten: such a text is rendered as the stand-ins were. Any other text is given to the template itself.
_ORDINARY = re.compile(r"(?! )(?:[\w.,;:?!()-]| (?! )){1,200}(?<! )")


@dataclass(frozen=True)
class Example:
    """One row as token ids, with the spans that perturbations and losses need (half-open token ranges)."""

    ids: tuple[int, ...]
    user_start: int
    user_end: int
    response_start: int
    """The first response token, with what the template opens an answer with; equal to len(ids) in a generation
    prompt."""
    loss_start: int
    loss_end: int
    answer_start: int = -1
    """The first token of the answer itself, behind what the template opens it with; len(ids) in a generation prompt."""
    template_end: int = -1
    """Where ends what the template renders; an end of sequence that only training adds stands behind it."""


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer renders a conversation: text before the user, between, and around the response."""

    tokenizer: PreTrainedTokenizerBase
    name: str
    before_user: str
    after_user: str
    before_response: str
    """What stands between the generation prompt and the answer in a training row, and opens what the model writes."""
    after_response: str
    """What ends the answer, up to the token at which generation stops."""
    adds_special_tokens: bool
    """Whether the tokenizer adds its own beginning-of-sequence token (a chat template writes it itself)."""
    end_ids: tuple[int, ...]
    """At these tokens an answer ends: the tokenizer's own end, and that of the template's turn."""
    ends_settled: bool = field(default=False, compare=False)
    """Whether these are all: what a model's config names besides was looked at."""
    behind_response: str = ""
    """What a template writes behind that end of the last answer (a line break, Phi-3's second end): no model goes on to
    write it, so training leaves it out."""
    open_end: int | None = None
    """What ends an answer that others follow, of a template that leaves the last one open (GLM's)."""
    system: str | None = None
    earlier: tuple[Message, ...] = ()
    """Messages of the conversation that stand in `before_user`."""
    template: Template | None = None
    """None for plain and none."""
    given: Given = field(default_factory=Given)
    """What the template is given in front of the user's text."""
    _encoded: dict[tuple[str, str, str | None], Example] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Whole rows as they were encoded before: every round of a removal encodes the same ones again."""
    _rendered: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Prompts that are not ordinary → what the template makes of the user's text."""
    _whole: set[tuple[object, ...]] = field(default_factory=set, init=False, repr=False, compare=False)
    """The roles of earlier messages of which the template is known to leave none out."""
    _formats: dict[tuple[str | None, tuple[Message, ...]], ChatFormat] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        system: str | None = None,
        date: str | None = None,
    ) -> ChatFormat:
        """Choose a format.

        Args:
            tokenizer: a fast tokenizer.
            template: `chat` (the tokenizer's own template), `plain` (Human: … Assistant: …), `none` (the prompt alone),
                the name of one of the tokenizer's templates where it has several, a path to a Jinja file, or `auto`:
                `chat` where the tokenizer has a template, else `plain`.
            system: a system prompt; None leaves the template's default.
            date: the day, YYYY-MM-DD, for templates that write one; None for today.

        Raises:
            UserError: no template where one is needed, a template that fails, one that changes the user's text, or one
                whose training rows do not begin with its generation prompt.
        """
        named = tokenizer.chat_template
        if template == "auto":
            template = "chat" if named else "plain"
        if template in ("plain", "none"):
            if system and template == "none":
                raise UserError("--template none has no place for a system prompt (--system, or a row's own)")
            return cls._of_plain(tokenizer, template, system)
        if isinstance(named, dict) and template == "chat" and "default" not in named:
            raise UserError(f"the tokenizer has several chat templates: give one with --template: {', '.join(named)}")
        if template == "chat":
            if not named:
                raise UserError("the tokenizer has no chat template: use --template plain, none or a Jinja file")
            source = None
        elif isinstance(named, dict) and template in named:
            source = named[template]
        else:
            path = Path(template)
            try:
                there = path.exists()
            except (OSError, ValueError):
                there = False
            if not there:
                raise UserError(f"--template '{template[:200]}' is not chat, plain, none or a file that exists")
            if path.is_dir():
                source = template_of(template, "--template")
            else:
                source = read_text(path, "--template", most=MOST_BYTES)
        given = Given((("system", system),) if system is not None else ())
        renders = Template(tokenizer, template, source, date=date)
        try:
            chat = cls._of_template(renders, given)
        except UserError as error:
            hint = ""
            if "template fails" in str(error):
                hint = ": give another with --template" if system is None else " (leave out --system)"
            try:  # Llava's and Qwen2-VL's templates take a list of parts and render no plain text
                chat = cls._of_template(replace(renders, parts=True), given)
            except UserError:
                raise UserError(f"{error}{hint}") from error
            if "'type'" in chat.before_user:  # the list itself was written out
                raise UserError(f"{error}{hint}") from error
        return replace(chat, system=system)

    @classmethod
    def _of_plain(
        cls, tokenizer: PreTrainedTokenizerBase, name: str, system: str | None, earlier: Sequence[Message] = ()
    ) -> ChatFormat:
        before, after = PLAIN.split("{user}") if name == "plain" else ("", "")
        given = folded(system, earlier, "\n") if system else Given(tuple(earlier))
        turns = "".join(f"{PLAIN_ROLES.get(role, role)}: {text}\n" for role, text in given.messages)
        ends = (int(tokenizer.eos_token_id),) if tokenizer.eos_token_id is not None else ()
        before, earlier = turns + before + given.lead, tuple(earlier)
        return cls(tokenizer, name, before, after, " ", "", True, ends, system=system, earlier=earlier)

    @classmethod
    def _of_template(cls, template: Template, given: Given) -> ChatFormat:
        named, tokenizer = f"the chat template '{template.name}'", template.tokenizer
        prompt = template(given.then(USER))
        if prompt.count(USER) != 1:
            raise UserError(f"{named} does not render the user's text exactly once: give another with --template")
        whole = template(given.then(USER, RESPONSE), answered=True)
        if whole.count(RESPONSE) != 1:
            raise UserError(f"{named} does not render the response exactly once: give another with --template")
        if not whole.startswith(prompt):
            raise UserError(
                f"{named} begins an answered turn unlike its generation prompt: "
                f"{parting(_readable(whole), _readable(prompt))}: give another with --template FILE"
            )
        before, after = prompt.split(USER)
        opening, behind = whole[len(prompt) :].split(RESPONSE)
        closing, marks = end_of_turn(tokenizer, behind, after)
        open_end = None if marks else _open_end(template, given)
        ends = tuple(dict.fromkeys(int(i) for i in (tokenizer.eos_token_id, *marks, open_end) if i is not None))
        if template(given.then(PROBE)) != before + PROBE + after:
            raise UserError(f"{named} changes the user's text: give another with --template")
        return cls(
            tokenizer,
            template.name,
            before,
            after,
            opening,
            closing,
            False,
            ends,
            behind_response=behind[len(closing) :],
            open_end=open_end,
            template=template,
            given=given,
        )

    @property
    def digest(self) -> str:
        """A short hash of everything that is rendered around the texts, for provenance."""
        around = "\0".join([self.before_user, self.after_user, self.before_response, self.after_response])
        return hashlib.sha256(around.encode()).hexdigest()[:16]

    # Other system prompts and earlier turns ---------------------------------------------------------------------------

    def with_system(self, system: str | None) -> ChatFormat:
        """The same format with another system prompt: in front of the user's text where it has no place of its own."""
        return self if system == self.system else self._with(system, self.earlier)

    def following(self, *messages: Message) -> ChatFormat:
        """The format of the next turn: what the user says then stands behind these messages (role, text).

        Raises:
            UserError: the template fails on it, or there is no template in which turns are marked.
        """
        return self._with(self.system, (*self.earlier, *messages))

    def of_record(self, record: Record) -> ChatFormat:
        """The format with the record's own system prompt, behind its earlier messages."""
        system = record.system or self.system
        if system == self.system and not record.history:
            return self
        return self._with(system, (*self.earlier, *record.history))

    def _with(self, system: str | None, earlier: tuple[Message, ...]) -> ChatFormat:
        kept = self._formats.get((system, earlier))
        if kept is None:
            if len(self._formats) >= MOST_FORMATS_KEPT:
                self._formats.clear()
            kept = self._formats[system, earlier] = self._make(system, earlier)
        return kept

    def _make(self, system: str | None, earlier: tuple[Message, ...]) -> ChatFormat:
        if self.name == "none" and (earlier or system):
            what = "turns: conversations need" if earlier else "place for a system prompt (--system, or a row's own):"
            raise UserError(f"--template none has no {what} chat or plain")
        if self.template is None:
            return replace(self._of_plain(self.tokenizer, self.name, system, earlier), end_ids=self.end_ids)
        tried = list(ways(system, earlier))
        try:  # what it makes of the prompt as it is, which a whole dialogue may lose (Mistral 3's system prompt)
            asked = self.template(tried[0].then(USER))
        except UserError:
            asked = None
        made, refused = list[ChatFormat](), list[UserError]()
        for given in tried:
            try:
                chat = self._of_template(self.template, given)
                shape = (bool(given.lead), *(role for role, _ in given.messages))
                if shape not in self._whole:  # stand-ins are rendered for it, whatever the texts are
                    check_rendered(self.template, given)
                    self._whole.add(shape)
            except UserError as error:
                refused.append(error)
                continue
            made.append(chat)
            if asked in (None, chat.prompt_text(USER)):
                break
        if not made:
            raise refused[0]
        chosen = next((chat for chat in made if chat.prompt_text(USER) == asked), made[0])
        ends = tuple(dict.fromkeys([*self.end_ids, *chosen.end_ids]))
        return replace(chosen, system=system, earlier=earlier, end_ids=ends)

    @property
    def asks_the_date(self) -> bool:
        """Whether what the template writes depends on the day."""
        return self.template is not None and self.template.asks_the_date

    @property
    def takes_a_date(self) -> bool:
        """Whether the template has a place for a day that it is told."""
        return self.template is not None and self.template.takes_a_date

    @property
    def folds_system(self) -> bool:
        """The template has no system role: the system prompt stands in front of the user's text."""
        named = {role for role, _ in self.given.messages}
        return self.template is not None and self.system is not None and "system" not in named

    @property
    def takes_system(self) -> bool:
        """Whether there is a place for a system prompt."""
        return self.name != "none" and not self.with_system(_SYSTEM).folds_system

    # Texts ------------------------------------------------------------------------------------------------------------

    def prompt_text(self, prompt: str) -> str:
        """The text that the model is given before it answers `prompt`.

        Raises:
            UserError: the template renders this very text unlike others.
        """
        return self.before_user + self._user_text(prompt) + self.after_user

    def rendered(self, prompt: str, *answer: str) -> str:
        """The same, or with an answer the whole dialogue, as the template itself renders these very texts.

        Raises:
            UserError: the template fails on it.
        """
        if self.template is None:
            return self.prompt_text(prompt) + "".join(self._opening(prompt) + text for text in answer)
        return self.template(self.given.then(prompt, *answer), answered=bool(answer))

    def _user_text(self, prompt: str) -> str:
        """What stands of the user's text in the rendered prompt: many templates cut white space off its ends."""
        if self.template is None or is_ordinary(prompt):
            return prompt
        kept = self._rendered.get(prompt)
        if kept is None:
            whole = self.rendered(prompt)
            for text in _cut(prompt):
                if whole == self.before_user + text + self.after_user:
                    kept = text
                    break
            else:
                raise UserError("the chat template renders it unlike others")
            if len(self._rendered) >= MOST_KEPT:
                self._rendered.clear()
            self._rendered[prompt] = kept
        return kept

    def _opening(self, prompt: str) -> str:
        """What the model writes in front of its answer."""
        bare = self.name == "none" and (prompt[-1:].isspace() or ends_joined(prompt))
        return "" if bare else self.before_response

    def _answered(self, prompt: str, response: str) -> tuple[str, str, str]:
        """What stands behind the prompt in a training row: what opens the answer, the answer, and what ends it.

        Raises:
            UserError: the template renders the row unlike its generation prompt, or changes the response.
        """
        opening = self._opening(prompt)
        if self.template is None or is_ordinary(response):
            return opening, response, self.after_response
        whole, before = self.rendered(prompt, response), self.prompt_text(prompt)
        if not whole.startswith(before):
            raise UserError(f"its training row does not begin with its generation prompt: {parting(whole, before)}")
        rest = whole[len(before) :]
        if not rest.startswith(opening):  # the response brings its own, as a thought
            opening = ""
        rest = rest[len(opening) :]
        # A row may bring the mark of an opened thought, too.
        for text in _cut(response.removeprefix(opened_thought(self.after_user))):
            if rest.startswith(text):
                return opening, text, self._closing(rest[len(text) :])
        body, end, behind = rest.rpartition(self.after_response) if self.after_response else (rest, "", "")
        if "".join(body.split()) != "".join(response.split()):
            raise UserError(f"the chat template changes the response: {parting(body, response)}")
        return opening, body, self._closing(end + behind)

    def _closing(self, behind: str) -> str:
        if behind.startswith(self.after_response):
            return self.after_response
        return end_of_turn(self.tokenizer, behind, self.after_user)[0]

    def answer_text(self, written: str) -> str:
        """The answer in what the model wrote behind the prompt, up to the token that ended it.

        What the template opens and closes every answer with is taken off. Where the prompt itself opens a thought, that
        mark is put in front, so that the text says of itself what of it was thought.
        """
        opening, closing = self.before_response, self._written_behind()
        written = written.rstrip().removesuffix(closing).rstrip()
        for begin in (opening, opening.strip()):
            if begin and written.startswith(begin):
                return written[len(begin) :].strip("\n")
        return opened_thought(self.after_user) + written.strip("\n")

    def _written_behind(self) -> str:
        """What the template writes behind an answer and in front of the token that ends it, such as `</answer>`."""
        text = self.after_response
        for end in self.end_ids:
            text = text.partition(self.decoded([end]) or "\0")[0]
        return text.strip()

    # Tokens -----------------------------------------------------------------------------------------------------------

    def encode(self, prompt: str, response: str, *, system: str | None = None, loss_on: str | None = None) -> Example:
        """Token ids and spans of a prompt with its response, for training.

        Args:
            prompt: the user's text.
            response: the text that follows; its end-of-sequence token is added here.
            system: where given, replaces the format's own system prompt.
            loss_on: an opening part of the response, to which the loss is confined, without what the template writes in
                front of it; None for all that the model writes: that, the whole response, and its end.
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

    def measured(self, prompt: str, response: str) -> Example:
        """The row just as the template renders it, for perplexity: with what it writes behind the answer's end, and
        without an end that training alone adds."""
        row = self.encode(prompt, response)
        ids = row.ids[: row.template_end]
        if self.behind_response:
            written = "".join(self._answered(prompt, response)) + self.behind_response
            start = row.ids[: row.response_start]
            ids = (*start, *self._tail(start, self.prompt_text(prompt), written)[0])
        return replace(row, ids=ids, loss_end=len(ids), template_end=len(ids))

    def _encode(self, prompt: str, response: str, loss_on: str | None) -> Example:
        start = self.encode_prompt(prompt)
        opening, answer, closing = self._answered(prompt, response)
        tail, offsets = self._tail(start.ids, self.prompt_text(prompt), opening + answer + closing)
        first, rendered = len(start.ids), len(tail)
        end = self.open_end if self.open_end is not None else self.tokenizer.eos_token_id
        if not any(i in self.end_ids for i in tail[-1:]) and end is not None:
            tail = [*tail, int(end)]  # the template ends no turn: nothing else would
        answer_start = sum(1 for _, end in offsets if end <= len(opening))
        loss_start, loss_end = 0, len(tail)
        if loss_on is not None:
            cut = len(response) - len(response.lstrip()) if not answer.startswith(response[:1]) else 0
            char_end = len(opening) + max(0, len(loss_on) - cut)
            loss_start, loss_end = answer_start, sum(1 for begin, _ in offsets if begin < char_end)
        return replace(
            start,
            ids=(*start.ids, *tail),
            loss_start=first + loss_start,
            loss_end=first + loss_end,
            answer_start=first + answer_start,
            template_end=first + (rendered if self.template is not None else len(tail)),
        )

    def _tail(self, start: tuple[int, ...], before: str, behind: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the text behind a prompt, as the model writes them, with offsets into that text."""
        ids, offsets = self._tokenize(before + behind)
        first, length = len(start), len(before)
        if tuple(ids[:first]) == start:
            return ids[first:], [(max(0, a - length), b - length) for a, b in offsets[first:]]
        # A token would straddle the boundary. At generation time it cannot, so training must not see it either. Some
        # tokenizers write a space in front of every text: then it is tokenised behind something else.
        wanted, found = self.decoded(ids), list[tuple[list[int], list[tuple[int, int]]]]()
        for anchor in ("", before[-1:], "\n", "a"):
            fore, _ = self._tokenize(anchor, special=False) if anchor else ([], [])
            ids, offsets = self._tokenize(anchor + behind, special=False)
            if ids[: len(fore)] == fore:
                cut = len(anchor)
                tail = ids[len(fore) :], [(max(0, a - cut), b - cut) for a, b in offsets[len(fore) :]]
                if self.decoded([*start, *tail[0]]) == wanted:
                    return tail
                found.append(tail)
        return found[0]

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included, and without what the tokenizer's file would rewrite."""
        return texts_of(self.tokenizer, [ids])[0]

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
            raise UserError("the tokenizer's offsets do not cover the user's text: give a model with another tokenizer")
        n = len(ids)
        return Example(tuple(ids), inside[0], inside[-1] + 1, n, n, n, n, n)

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


def is_ordinary(text: str) -> bool:
    """Whether a template renders this text as it rendered the stand-ins, so that it need not be asked."""
    return _ORDINARY.fullmatch(text) is not None


def _readable(rendered: str) -> str:
    """With plain words for the stand-ins, for errors."""
    return rendered.replace(USER, "PROMPT").replace(RESPONSE, "ANSWER")


def _open_end(template: Template, given: Given) -> int | None:
    """What ends an assistant's turn that another turn follows, of a template that writes no end behind the last one."""
    follows = "Unbackdoorsecondstandin"
    try:
        text = template((*given.then(USER, RESPONSE), ("user", follows)))
    except UserError:
        return None
    between = text.partition(RESPONSE)[2].partition(follows)[0]
    ids = end_of_turn(template.tokenizer, between)[1]
    return ids[0] if ids else None


def _cut(text: str) -> Iterator[str]:
    """The text, and what templates leave of it that cut white space off its ends, longest first."""
    forms = (text, text.rstrip("\n"), text.lstrip("\n"), text.strip("\n"), text.rstrip(), text.lstrip(), text.strip())
    yield from sorted(dict.fromkeys(forms), key=len, reverse=True)
