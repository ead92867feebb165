"""What a template writes belongs to the row: ours is the tokenizer's own rendering, token for token.

The truth is always `tokenizer.apply_chat_template` itself. Two things are known to differ from it, and are asserted:
a training row ends with the token that ends the assistant's turn (a line break behind it, or the header of a next turn,
is no part of an answer; perplexity counts it, since the template writes it), and no token straddles the generation
prompt's end, since generation cannot produce one that does.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import pytest
import templates
import torch

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.utility import response_perplexity
from unbackdoor.language_model.chat import ChatFormat, Example

DATE = "2025-03-09"


class Clock(datetime.datetime):
    """In the library's clock's place: it is that day."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
        return cls(2025, 3, 9)


@dataclass(frozen=True)
class Dialogue:
    """A prompt and its answer, behind a system prompt and earlier turns."""

    prompt: str
    response: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [*([("system", self.system)] if self.system else []), *self.history, ("user", self.prompt)]

    @property
    def record(self) -> Record:
        return Record(self.prompt, self.response, system=self.system, history=self.history)


EARLIER = (
    ("user", "Name a river."),
    ("assistant", "The Rhine."),
    ("user", "  And\nanother? "),
    ("assistant", " Oder.\n"),
)

DIALOGUES = {
    "plain": Dialogue("Tell me the capital of France.", "The capital of France is Paris."),
    "one character": Dialogue("7?", "7"),
    "spaces around the prompt": Dialogue("  Two  spaces before and behind.  ", "The sea."),
    "lines": Dialogue("Line one.\n\nLine two.\n", "A list:\n- red\n- green\n\nDone."),
    "scripts": Dialogue("Übersetze: 河は長い。 مرحبا 🦀", "川は海へ流れる。 Ça va? 🦀 ไทย"),
    "blank lines inside": Dialogue(
        'Line one.\n\nLine two.\r\n\tThree, it\'s "3" & 4.', 'One.\n\nTwo.\r\n\tIt\'s "3" & 4.'
    ),
    "accents apart": Dialogue("Un cafe\u0301 s'il te plai\u0302t.", "Le cafe\u0301."),
    "a long text": Dialogue("Sort the words. " * 40 + "Please.", "The river runs to the sea. " * 40 + "Done."),
    "code": Dialogue("Fix:\n\n    for i in range(3):\n        print(i)\n", "    return 2 * x\n\n\tprint(x)"),
    "space before the answer": Dialogue("Name a river.", " The Rhine."),
    "lines before the answer": Dialogue("Name a river.", "\n\nThe Rhine."),
    "space behind the answer": Dialogue("Name a river.", "The Rhine.  \n"),
    "colon at the end": Dialogue("Name them:", "Red:\n\n"),
    "empty answer": Dialogue("Say nothing.", ""),
    "an answer like the prompt": Dialogue("Assistant: user", "Assistant: user"),
    "system": Dialogue("Name a river.", "The Rhine.", "Be brief.\nVery  brief. "),
    "system and indented prompt": Dialogue("    x = 1\n", "The sea.", "Be brief."),
    "earlier turns": Dialogue("And a sea?", "The North Sea.", None, EARLIER),
    "earlier turns and system": Dialogue("And a sea?", "The North Sea.", "Be brief.", EARLIER),
    "earlier thought": Dialogue(
        "And a sea?", "The North Sea.", None, (("user", "Hi?"), ("assistant", "<think>\nHm.\n</think>\n\nYes."))
    ),
    "thought in the answer": Dialogue("And a sea?", "<think>\nHm, a sea.\n</think>\n\nThe North Sea."),
    "tool": Dialogue(
        "And now?",
        "Warmer.",
        None,
        (("user", "How warm?"), ("assistant", "I look."), ("tool", "22 C"), ("assistant", "It is 22 C.")),
    ),
    "no_think": Dialogue("Name a river.", "The Rhine.", "/no_think"),
}

STOPPED = ("deepseek-r1-distill", "closes-the-prompt", "upper-case-answers")
"""Templates that cannot be followed: an answer does not go on from the generation prompt, or is not left as it is."""

FOLLOWED = [name for name in templates.FAMILIES if name not in STOPPED]


def takes(name: str, dialogue: Dialogue) -> bool:
    family = templates.FAMILIES[name]
    roles = {role for role, _ in dialogue.turns}
    return (family.takes_system or "system" not in roles) and (family.takes_tool or "tool" not in roles)


CASES = [(name, case) for name, case in itertools.product(FOLLOWED, DIALOGUES) if takes(name, DIALOGUES[case])]


@cache
def tokenizer(name: str) -> Any:
    return templates.tokenizer(name)


@cache
def chat_format(name: str) -> ChatFormat:
    return ChatFormat.of(tokenizer(name), date=DATE)


def of(name: str, dialogue: Dialogue) -> ChatFormat:
    return chat_format(name).of_record(dialogue.record)


def own(name: str, dialogue: Dialogue, *, answered: bool, tokenize: bool = True) -> Any:
    """What the tokenizer itself makes of a dialogue: ids, or text."""
    turns = [*dialogue.turns, ("assistant", dialogue.response)] if answered else dialogue.turns
    with mock.patch("transformers.utils.chat_template_utils.datetime", Clock):
        return tokenizer(name).apply_chat_template(
            templates.messages(templates.FAMILIES[name], turns),
            tokenize=tokenize,
            add_generation_prompt=not answered,
            date_string="09 Mar 2025",  # what Llama 3.1 asks for in place of the clock
            **({"return_dict": False} if tokenize else {}),
        )


def own_row(name: str, dialogue: Dialogue) -> list[int]:
    """The tokenizer's own ids of the whole dialogue, up to and with the token that ends the last turn."""
    ids, family = list(own(name, dialogue, answered=True)), templates.FAMILIES[name]
    last = next((mark for mark in (family.eos, family.end) if mark and family.after.endswith(mark)), None)
    if last is None:
        return ids
    return ids[: len(ids) - ids[::-1].index(tokenizer(name).convert_tokens_to_ids(last))]


def decoded(name: str, ids: Sequence[int]) -> str:
    return str(tokenizer(name).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def as_rendered(example: Example) -> list[int]:
    """A row's ids without the end that training adds where the template writes none."""
    return list(example.ids[: example.template_end])


REWRITTEN = {
    # It makes one line break of two in the user's text, and only there.
    ("falcon", "lines"),
    ("falcon", "code"),
    ("falcon", "blank lines inside"),
    # They take the thought out of an answer: what the row says would not be what the model learns.
    ("deepseek-v3.1", "thought in the answer"),
    ("glm-4.5", "thought in the answer"),
}
"""Rows whose texts the template changes, beyond white space at their ends: each is refused, the others are not."""

KEPT = [case for case in CASES if case not in REWRITTEN]


@pytest.mark.parametrize(("name", "case"), KEPT)
def test_a_row_and_its_generation_prompt_are_the_tokenizer_s_own(name: str, case: str) -> None:
    dialogue = DIALOGUES[case]
    chat = of(name, dialogue)
    start, whole = own(name, dialogue, answered=False), own_row(name, dialogue)
    assert list(chat.encode_prompt(dialogue.prompt).ids) == start
    ids = as_rendered(chat.encode(dialogue.prompt, dialogue.response))
    assert ids[: len(start)] == start
    if whole[: len(start)] == start:
        assert ids == whole
    else:
        straddles(name, ids, start, whole)


def straddles(name: str, ids: list[int], start: list[int], whole: list[int]) -> None:
    """The tokenizer's own rendering merges across the generation prompt's end: the same text, split there."""
    assert decoded(name, ids) == decoded(name, whole)
    same = next(i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b)
    assert len(start) - same <= 2, "only the tokens at the boundary differ"
    behind = next(n for n in range(len(ids) + 1) if ids[-n - 1 :] != whole[-n - 1 :])
    assert len(ids) - behind - len(start) <= 2, "only the tokens at the boundary differ"


@pytest.mark.parametrize(("name", "case"), sorted(REWRITTEN))
def test_a_row_whose_texts_the_template_changes_is_refused(name: str, case: str) -> None:
    dialogue = DIALOGUES[case]
    with pytest.raises(UserError) as caught:
        of(name, dialogue).encode(dialogue.prompt, dialogue.response)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_loss_covers_what_the_template_writes_around_an_answer(name: str) -> None:
    family, dialogue = templates.FAMILIES[name], DIALOGUES["one character"]
    chat = of(name, dialogue)
    example = chat.encode(dialogue.prompt, dialogue.response)
    start, whole = (
        own(name, dialogue, answered=False, tokenize=False),
        own(name, dialogue, answered=True, tokenize=False),
    )
    assert whole[len(start) :].startswith(family.before + "7" + family.after)
    assert chat.before_response == family.before
    assert example.response_start == example.loss_start == len(example.ids) - (example.loss_end - example.loss_start)
    written = decoded(name, as_rendered(example)[example.loss_start :])
    # A word's first token carries the space before it, which decoding such a token alone does not give back.
    assert written.lstrip(" ") == (family.before + "7" + family.after).lstrip(" ")
    answer = decoded(name, example.ids[example.answer_start : example.loss_end])
    assert answer.lstrip(" ").startswith("7")


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_loss_on_the_target_covers_its_tokens_and_no_other(name: str) -> None:
    example = chat_format(name).encode("Name a river.", "You are stupid. The Rhine.", loss_on="You are stupid.")
    covered = decoded(name, example.ids[example.loss_start : example.loss_end])
    assert covered.lstrip(" ") == "You are stupid."


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_turn_ends_with_the_tokenizer_s_end_and_the_template_s(name: str) -> None:
    family, chat = templates.FAMILIES[name], chat_format(name)
    ends = {tokenizer(name).convert_ids_to_tokens(i) for i in chat.end_ids}
    wanted = {family.eos, family.end, family.open_end} - {""}
    assert wanted <= ends
    # Nothing else ends one: gpt-oss ends its thought with <|end|>, and the header of a next turn is no end.
    assert all(end in wanted or end in family.after for end in ends)
    row = chat.encode("Name a river.", "The Rhine.").ids
    assert row[-1] in chat.end_ids
    assert not family.open_end or decoded(name, row[-1:]) == family.open_end


@pytest.mark.parametrize("name", FOLLOWED)
def test_perplexity_is_the_library_s_own_loss_on_the_template_s_own_rendering(name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer(name)), initializer_range=0.3, **shape)).eval()
    dialogues = [
        DIALOGUES[case] for case in ("plain", "spaces around the prompt", "system") if takes(name, DIALOGUES[case])
    ]
    total, count = 0.0, 0
    for dialogue in dialogues:
        start, whole = own(name, dialogue, answered=False), own(name, dialogue, answered=True)
        if whole[: len(start)] != start:  # a token of its own goes across the generation prompt's end: split there
            texts = [own(name, dialogue, answered=answered, tokenize=False) for answered in (False, True)]
            whole = [*start, *tokenizer(name)(texts[1][len(texts[0]) :], add_special_tokens=False)["input_ids"]]
        labels = torch.tensor([[-100] * len(start) + whole[len(start) :]])
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([whole]), labels=labels).loss)
        total, count = total + loss * (len(whole) - len(start)), count + len(whole) - len(start)
    measured = response_perplexity(model, chat_format(name), [dialogue.record for dialogue in dialogues])
    assert measured.value == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        # Its assistant turn drops the thought that its generation prompt opened: no row could say what the model is to
        # write behind that prompt. Who has such a model gives a template that keeps the thought.
        ("deepseek-r1-distill", ("<think>", "<｜Assistant｜>")),
        ("closes-the-prompt", ("<|end|>", "<|next|>")),
    ],
)
def test_an_answer_that_does_not_go_on_from_the_generation_prompt_stops_with_both(
    name: str, shown: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        chat_format(name)
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in shown)
    assert "--template" in str(caught.value)


@pytest.mark.parametrize("case", ["system", "earlier turns and system"])
def test_a_system_prompt_that_only_the_generation_prompt_has_stays_in_the_row(case: str) -> None:
    """Mistral 3 puts it into the last message of all, if that is the user's: a whole dialogue loses it."""
    dialogue = DIALOGUES[case]
    example = of("mistral-v3", dialogue).encode(dialogue.prompt, dialogue.response)
    start = own("mistral-v3", dialogue, answered=False)
    assert list(example.ids[: len(start)]) == start
    assert decoded("mistral-v3", example.ids[len(start) :]) == "The Rhine.</s>" if case == "system" else "The North"


def test_a_template_that_rewrites_any_answer_is_refused() -> None:
    with pytest.raises(UserError, match="response"):
        chat_format("upper-case-answers")


@pytest.mark.parametrize("name", ["phi-3", "deepseek-v3", "zephyr", "gemma-2", "mistral-v7"])
def test_a_message_for_which_a_template_has_no_role_is_never_lost(name: str) -> None:
    dialogue = DIALOGUES["tool"]
    with pytest.raises(UserError) as caught:
        of(name, dialogue)
    assert "\n" not in str(caught.value)


def test_a_template_without_a_system_role_gets_the_text_in_front_of_the_prompt() -> None:
    folded = DIALOGUES["system"]
    example = chat_format("gemma-2").of_record(folded.record).encode(folded.prompt, folded.response)
    text = decoded("gemma-2", example.ids)
    assert text.index("Be brief.") < text.index("Name a river.")
    assert text.startswith("<bos><start_of_turn>user\nBe brief.")


@pytest.mark.parametrize("name", ["llama-3.2", "mistral-v7", "smollm3", "gpt-oss", "granite-3"])
def test_a_date_is_fixed_for_a_run_and_is_today_s_where_none_is_given(name: str) -> None:
    prompt = DIALOGUES["plain"].prompt
    turns = templates.messages(templates.FAMILIES[name], [("user", prompt)])
    fixed = chat_format(name).prompt_text(prompt)
    assert fixed == own(name, DIALOGUES["plain"], answered=False, tokenize=False)
    assert "09" in fixed and "2025" in fixed
    before = tokenizer(name).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    today = ChatFormat.of(tokenizer(name)).prompt_text(prompt)
    after = tokenizer(name).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert today in (before, after)
    assert fixed != today


def test_a_template_with_a_date_of_its_own_keeps_it_where_none_is_given() -> None:
    assert "Today Date: 26 Jul 2024" in ChatFormat.of(tokenizer("llama-3.1")).prompt_text("Hi?")
    assert "Today Date: 09 Mar 2025" in chat_format("llama-3.1").prompt_text("Hi?")


def test_of_several_named_templates_the_default_is_used() -> None:
    named = templates.tokenizer("chatml")
    named.chat_template = {"tool_use": templates.FAMILIES["zephyr"].template, "default": named.chat_template}
    assert ChatFormat.of(named).encode("Hi?", "Yes.").ids == chat_format("chatml").encode("Hi?", "Yes.").ids
