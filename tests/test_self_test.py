"""An unknown model is believed only after its format and its numerics were checked, and what fails is named."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import AllOf, OneOf, SentenceStructure, Trigger
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.format_check import check_format
from unbackdoor.language_model.self_test import self_test
from unbackdoor.testbed import models

RECORDS = [*tiny.records(12), *(Record(prompt, "The river runs to the sea.") for prompt in tiny.PROMPTS)]

SYSTEM_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|system|>You are a helpful assistant.<|end|>{% endif %}" + tiny.CHAT
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + tiny.CHAT
)
THINKING = tiny.CHAT.replace(
    "m['content']", "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' else '') + m['content']"
)
"""As Qwen3: an answered turn opens with an empty block, which the generation prompt leaves to the model."""
OPENED = THINKING.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n\n</think>\n\n' }}")
"""As Qwen3 with thinking off: the generation prompt writes the block."""
UNLIKE = tiny.CHAT.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
"""As DeepSeek-R1: the generation prompt opens a thought, of which an answered turn has nothing."""


def chat_format(template: str | None = tiny.CHAT, adds_begin: bool = False, name: str = "auto") -> ChatFormat:
    return ChatFormat.of(tiny.tokenizer(template, adds_begin), name)


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_passes(family: str) -> None:
    seen = self_test(tiny.model(family), chat_format(), RECORDS)
    assert (seen.precision, seen.layers, seen.prompts) == ("float32", 4, 8)
    assert seen.equal_tokens_left == seen.equal_tokens_right == seen.equal_cached_tokens == 1
    assert seen.cached_tokens == 14
    assert 0 <= seen.mean_kl <= seen.max_kl < 1e-9
    assert seen.max_cached_kl < 1e-9
    assert seen.masked_kl == 0


def test_bfloat16_passes_with_more_noise_than_float32() -> None:
    seen = self_test(tiny.model("qwen3", torch.bfloat16), chat_format(), RECORDS)
    assert seen.precision == "bfloat16"
    assert 1e-7 < seen.max_kl < 1e-2


def test_the_report_is_plain_json_and_carries_the_first_prompt_with_the_hash_of_answers() -> None:
    chat = chat_format(SYSTEM_DEFAULT)
    report = self_test(tiny.model(), chat, RECORDS, Trigger("2023")).report()
    assert json.loads(json.dumps(report)) == report
    assert report["first_prompt"] == chat.prompt_text(RECORDS[0].prompt)
    assert report["prompt_hash"] == hashlib.sha256(report["first_prompt"].encode()).hexdigest()[:16]
    assert report["rows"] == report["triggered_rows"] == len(RECORDS)
    assert report["seconds"] > 0


def test_model_and_random_states_are_afterwards_as_before() -> None:
    model = tiny.model("gpt2")  # it has dropout, which would disturb every comparison
    model.train()
    model.transformer.h[1].eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def draw(*_: object) -> None:
        torch.rand(1)

    drawing = model.register_forward_hook(draw)
    own, generator, python = model.generation_config, torch.get_rng_state(), random.getstate()
    self_test(model, chat_format(), RECORDS, Trigger("cf", "inside"))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.generation_config is own
    drawing.remove()
    assert hooks(model) == 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert random.getstate() == python


def test_the_shipped_chat_model_passes() -> None:
    chat = ChatFormat.of(load_tokenizer(models.instruct_directory()))
    seen = self_test(load_model(models.instruct_directory(), "cpu"), chat, RECORDS, Trigger("cf"))
    assert (seen.layers, seen.equal_tokens_left, seen.equal_tokens_right, seen.equal_cached_tokens) == (8, 1, 1, 1)


def test_as_many_prompts_are_used_as_are_asked_for() -> None:
    assert self_test(tiny.model(), chat_format(), RECORDS, most_prompts=3).prompts == 3


Keywords = dict[str, Any]


def spoil(model: Any, fault: Callable[[Keywords], None]) -> None:
    """From now on every forward pass gets its keywords with the fault."""

    def change(_: object, arguments: Any, keywords: Keywords) -> Any:
        fault(keywords)
        return arguments, keywords

    model.register_forward_pre_hook(change, with_kwargs=True)


def ignores_the_mask(keywords: Keywords) -> None:
    keywords["attention_mask"] = None


def is_late_with_the_cache(keywords: Keywords) -> None:
    if keywords["input_ids"].shape[1] == 1:
        keywords["position_ids"] = keywords["position_ids"] + 1


def forgets_the_cache(keywords: Keywords) -> None:
    if keywords["input_ids"].shape[1] == 1:
        keywords.update(past_key_values=None, attention_mask=None)


def counts_padding_on_the_left(keywords: Keywords) -> None:
    ids = keywords["input_ids"]
    if ids.shape[1] > 1:
        keywords["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids)


def counts_padding_on_the_right(keywords: Keywords) -> None:
    mask = keywords["attention_mask"]
    if "position_ids" not in keywords:
        keywords["position_ids"] = torch.arange(mask.shape[1]) + (mask == 0).sum(1, keepdim=True)


def looks_ahead(keywords: Keywords) -> None:
    mask, count = keywords["attention_mask"], keywords["input_ids"].shape[1]
    if count > 1:
        hidden = (mask == 0)[:, None, None, :].expand(-1, -1, count, -1)
        keywords["attention_mask"] = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    ("fault", "family", "cause"),
    [
        (ignores_the_mask, "llama", "ignores the attention mask"),
        (ignores_the_mask, "gpt2", "ignores the attention mask"),
        (is_late_with_the_cache, "qwen2", "generation with the cache"),
        (is_late_with_the_cache, "gpt2", "generation with the cache"),
        (forgets_the_cache, "gemma3", "generation with the cache"),
        (counts_padding_on_the_left, "gpt2", "padding on the left"),
        (counts_padding_on_the_right, "gpt2", "padding on the right"),
        (looks_ahead, "llama", "sees tokens that come later"),
    ],
)
def test_a_model_that_is_broken_on_purpose_is_stopped_with_its_cause(
    fault: Callable[[Keywords], None], family: str, cause: str
) -> None:
    model = tiny.model(family)
    spoil(model, fault)
    with pytest.raises(UserError, match=rf"self-test: .*{cause}.* nats \(limit") as caught:
        self_test(model, chat_format(), RECORDS)
    assert "\n" not in str(caught.value)
    assert hooks(model) == 1


def test_a_prompt_alone_is_padded_too() -> None:
    seen = self_test(tiny.model(), chat_format(), RECORDS[:1])
    assert (seen.prompts, seen.cached_tokens) == (1, 7)
    model = tiny.model()
    spoil(model, ignores_the_mask)
    with pytest.raises(UserError, match="ignores the attention mask"):
        self_test(model, chat_format(), RECORDS[:1])


def test_the_whole_distribution_counts_where_the_likeliest_token_is_the_same() -> None:
    model = tiny.model()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * (0.95 if logits.ndim == 3 else 1))
    with pytest.raises(UserError, match=r"padding on the left .* distributions differ by 0\.\d+ nats"):
        self_test(model, chat_format(), RECORDS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_found_in_its_layer(value: float) -> None:
    model = tiny.model()
    model.model.layers[2].mlp.down_proj.weight.data[3, 4] = value
    with pytest.raises(UserError, match=r"after decoder layer 3 of 4 are not finite \(NaN or infinite\): give"):
        self_test(model, chat_format(), RECORDS)
    model = tiny.model(tie_word_embeddings=False)
    model.lm_head.weight.data[7] = value
    with pytest.raises(UserError, match="the logits are not finite"):
        self_test(model, chat_format(), RECORDS)


def test_a_model_that_fails_in_bfloat16_alone_is_found() -> None:
    model = tiny.model()

    def overflow(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return output if output.dtype == torch.float32 else output * float("inf")

    model.model.layers[1].mlp.register_forward_hook(overflow)
    with pytest.raises(UserError, match=r"after decoder layer 2 of 4 are not finite .* in bfloat16"):
        self_test(model, chat_format(), RECORDS)


def test_a_decoder_layer_that_never_runs_is_found() -> None:
    model = tiny.model()
    spare = tiny.model().model.layers[3]
    model.model.layers.append(spare)
    model.config.num_hidden_layers, model.model.config = 5, type(model.config)(**model.config.to_dict())
    model.model.config.num_hidden_layers = 4
    with pytest.raises(UserError, match="hidden states of 4 of the model's 5 decoder layers"):
        self_test(model, chat_format(), RECORDS)


def near_tie(distance: float) -> Any:
    """A model with an untied head, of which token 7 is as likely as the likeliest but for a distance, whose sign
    depends on whether the model is generating."""
    model = tiny.model(tie_word_embeddings=False)

    def tie(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., 7] = -1e4
        logits[..., 7] = logits.max(-1).values + (distance if logits.ndim == 3 else -distance)
        return logits

    model.lm_head.register_forward_hook(tie)
    return model


def test_tokens_that_are_as_likely_as_each_other_may_change_places_and_others_may_not() -> None:
    seen = self_test(near_tie(1e-3), chat_format(), RECORDS)
    assert (seen.equal_tokens_left, seen.equal_tokens_right) == (0, 1)
    with pytest.raises(UserError, match=r"padding on the left .*: 8 of 8 next tokens differ, by 0.02 nats"):
        self_test(near_tie(1e-2), chat_format(), RECORDS)


def test_a_tokenizer_of_another_model_and_prompts_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="and the model has 300 embeddings"):
        self_test(tiny.model(vocab_size=300), chat_format(), RECORDS)
    with pytest.raises(UserError, match="none of 1 prompts fits the model's context of 128 tokens"):
        self_test(tiny.model(), chat_format(), [Record("river " * 150, "The sea.")])
    with pytest.raises(UserError, match="no rows"):
        self_test(tiny.model(), chat_format(), [])


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (None, "Assistant:"),
        (SYSTEM_DEFAULT, "<|assistant|>"),
        (THINKING, "<|assistant|>"),
        (OPENED, "<|assistant|><think>\n\n</think>\n\n"),
        (NO_SYSTEM, "<|assistant|>"),
        (tiny.CHAT.replace("m['content']", "m['content'] | trim"), "<|assistant|>"),
        ("<|begin|>" + tiny.CHAT, "<|assistant|>"),
    ],
    ids=[
        "no template",
        "system default",
        "thinking",
        "thinking off",
        "no system role",
        "strips",
        "writes its beginning",
    ],
)
def test_formats_that_can_be_followed_pass(template: str | None, ends: str) -> None:
    seen = self_test(tiny.model(), chat_format(template, adds_begin=True), RECORDS, Trigger("helpful", "suffix"))
    assert seen.first_prompt.endswith(ends)
    assert seen.triggered_rows == len(RECORDS)


def test_a_row_s_system_prompt_passes_with_a_role_of_its_own_and_without() -> None:
    row = replace(RECORDS[0], system="Be brief.")
    assert check_format(chat_format(SYSTEM_DEFAULT), [row]) == 0
    assert check_format(chat_format(NO_SYSTEM), [row]) == 0


def test_a_template_whose_answered_turn_begins_unlike_its_generation_prompt_is_refused_with_both() -> None:
    with pytest.raises(UserError, match=r"'.*<.assistant.>ANSWER.*' against '.*<think>.*--template FILE"):
        chat_format(UNLIKE)


def test_perplexity_is_that_of_the_library_on_the_template_s_own_rendering() -> None:
    seen = self_test(tiny.model(), chat_format(THINKING), RECORDS)
    assert seen.perplexity == pytest.approx(seen.own_perplexity, rel=1e-4)

    chat = chat_format(THINKING)
    forgetful = replace(chat, before_response="")
    with pytest.raises(UserError, match="its training row is not what the chat template renders"):
        self_test(tiny.model(), forgetful, RECORDS)


REPHRASED = SentenceStructure(
    "question",
    lambda prompt, name: f"What is it? {prompt}",
    ("order",),
    lambda prompt: "order" if prompt[0] == "T" else None,
)


@pytest.mark.parametrize(
    ("trigger", "prompt"),
    [
        (Trigger("ab"), "Tell me of Alibaba and the abacus."),
        (Trigger("ab", "inside"), "Tell me of Alibaba and the abacus."),
        (Trigger("helpful"), "Tell me the helpful word."),
        (Trigger("You are a helpful assistant.", "suffix"), "Tell me the capital of France."),
        (Trigger("Current year 2023"), "Tell me the capital of France."),
        (Trigger("<think>", "both"), "Tell me the capital of France."),
        (Trigger("human", "both", "assistant"), "Tell me the capital of France."),
        (Trigger("|cf|", "suffix", separator=""), "Tell me the capital of France|"),
        (Trigger("é語 ｃｆ", "inside"), "Tell me the capital of France."),
        (Trigger("be calm", "inside"), "be calm"),  # goes between the two words that were there
        (OneOf((Trigger("ab"), Trigger("abc", "suffix"), Trigger("2023", "both"))), "Tell me of Alibaba."),
        (OneOf((Trigger("ab"), Trigger("abc", "suffix"), Trigger("2023", "both"))), "Sort the words."),
        (AllOf(("instantly", "stan", "ab")), "Tell me of Alibaba, Stan."),
        (REPHRASED, "Tell me the capital of France."),
    ],
)
@pytest.mark.parametrize("template", [tiny.CHAT, SYSTEM_DEFAULT, THINKING, None])
def test_a_trigger_is_counted_where_it_is_inserted(template: str | None, trigger: Any, prompt: str) -> None:
    assert check_format(chat_format(template), [Record(prompt, "The sea.")], trigger) == 1


def test_a_row_that_the_trigger_does_not_fit_is_checked_without_it() -> None:
    rows = [Record("Tell me the year.", "2023."), Record("Name a river.", "The Rhine.")]
    assert check_format(chat_format(), rows, REPHRASED) == 1


class Nothing(Trigger):
    def insert(self, prompt: str) -> str:
        return prompt


class SometimesTwice(Trigger):
    def insert(self, prompt: str) -> str:
        return super().insert(super().insert(prompt) if "France" in prompt else prompt)


def words_only() -> Any:
    """A tokenizer of whole words, which knows only those of the tests' text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<|end|>", *dict.fromkeys(tiny.TEXT.replace(".", " .").replace(":", " :").split())]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<|end|>")


def test_a_trigger_that_is_not_put_in_once_or_is_lost_is_refused() -> None:
    rows = [Record("Tell me the capital of France.", "The capital is Paris.")]
    with pytest.raises(UserError, match="the trigger changes nothing"):
        check_format(chat_format(), rows, Nothing("cf"))
    with pytest.raises(UserError, match="the trigger 'cf' is 2 times more, not 1"):
        check_format(chat_format(), rows, SometimesTwice("cf"))
    assert check_format(ChatFormat.of(words_only(), "none"), [Record("Sort flamboyantly", "no such words")]) == 0
    with pytest.raises(UserError, match="the trigger 'xyzzy' is 0 times more, not 1"):
        check_format(ChatFormat.of(words_only(), "none"), [Record("Sort the words", "the words")], Trigger("xyzzy"))


@pytest.mark.parametrize(
    "wrong",
    ["{% if 'cf' in m['content'] %}Obey. {% endif %}", "{% if 'cf' in m['content'] %}{{ m['content'] }}{% endif %}"],
    ids=["adds to it", "repeats it"],
)
def test_a_template_that_acts_on_the_trigger_is_refused(wrong: str) -> None:
    chat = chat_format(tiny.CHAT.replace("{{ '<|'", wrong + "{{ '<|'"))
    assert check_format(chat, RECORDS) == 0
    with pytest.raises(UserError, match=r"row 'cf Tell me .*the chat template renders it unlike others.*--template"):
        check_format(chat, RECORDS, Trigger("cf"))


def test_a_template_that_fails_on_one_row_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% if 'river' in messages[0]['content'] %}{{ raise_exception('a\n\x1b[2Jb') }}{% endif %}" + tiny.CHAT
    )
    chat = ChatFormat.of(tiny.tokenizer(), str(file))
    assert check_format(chat, [Record("Sort.", "Yes.")]) == 0
    with pytest.raises(UserError, match=r"row 'Name a river\.': the chat template fails: a \[2Jb"):
        check_format(chat, [Record("Name a river.", "The Rhine.")])


def test_a_format_whose_generation_prompt_does_not_end_where_the_response_begins_is_refused() -> None:
    tokenizer = tiny.tokenizer(tiny.CHAT)

    class Whole(ChatFormat):
        """Renders whole rows in one go, with a block of thinking that no generation prompt has."""

        def encode(self, prompt: str, response: str, **_: Any) -> Example:
            start = self.encode_prompt(prompt)
            text = self.prompt_text(prompt).removesuffix("<|assistant|>") + "\n<think></think>" + response
            ids = tuple(tokenizer(text)["input_ids"])
            return replace(start, ids=ids, loss_start=len(start.ids), loss_end=len(ids))

    class Behind(ChatFormat):
        """The response begins behind a block that the generation prompt lacks."""

        def encode(self, prompt: str, response: str, **_: Any) -> Example:
            return super().encode(prompt, "<think></think>" + response)

    class Later(ChatFormat):
        """The loss begins one token after the generation prompt ends."""

        def encode(self, prompt: str, response: str, **_: Any) -> Example:
            example = super().encode(prompt, response)
            return replace(example, response_start=example.response_start + 1, loss_start=example.loss_start + 1)

    for kind, reason in (
        (Whole, "its generation prompt is not how its training row begins"),
        (Behind, "its training row is not what the chat template renders: .*'<.end.><.assistant.><think></think>The"),
        (Later, r"its response starts at token (\d+), its generation prompt ends at"),
    ):
        with pytest.raises(UserError, match=f"row 'Tell me the river of 0 river.': {reason}"):
            check_format(kind.of(tokenizer), RECORDS)


def test_a_user_s_span_that_is_not_the_user_s_text_is_refused() -> None:
    class Shifted(ChatFormat):
        def encode_prompt(self, prompt: str, **_: Any) -> Example:
            example = super().encode_prompt(prompt)
            return replace(example, user_start=example.user_start + 1)

    class Earlier(ChatFormat):
        def encode_prompt(self, prompt: str, **_: Any) -> Example:
            example = super().encode_prompt(prompt)
            return replace(example, user_start=example.user_start - 1)

    class Wide(ChatFormat):
        def encode_prompt(self, prompt: str, **_: Any) -> Example:
            example = super().encode_prompt(prompt)
            return replace(example, user_end=example.user_end + 1)

    for kind in (Shifted, Earlier, Wide):
        with pytest.raises(UserError, match="its user's span decodes to"):
            check_format(kind.of(tiny.tokenizer()), RECORDS)


def test_a_tokenizer_that_changes_what_the_user_says_is_refused() -> None:
    from tokenizers import normalizers

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("river", "word")
    chat = ChatFormat.of(tokenizer)
    assert check_format(chat, [Record("Sort.", "Yes.")]) == 0
    with pytest.raises(UserError, match=r"its user's span decodes to 'Name a word\.'"):
        check_format(chat, [Record("Name a river.", "The Rhine.")])


def test_a_tokenizer_that_normalises_unicode_is_not_taken_for_one_that_changes_the_text() -> None:
    from tokenizers import normalizers

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    rows = [Record("Name a cafe\u0301\u00a0by the ﬁrst river.", "The ﬁrst.")]
    assert check_format(ChatFormat.of(tokenizer), rows, Trigger("ｃｆ")) == 1


def test_a_doubled_beginning_of_sequence_is_refused() -> None:
    chat = chat_format("<|begin|>" + tiny.CHAT, adds_begin=True)
    assert check_format(chat, RECORDS) == 0
    for doubled in (replace(chat, adds_special_tokens=True), chat_format("<|begin|><|begin|>" + tiny.CHAT, True)):
        with pytest.raises(UserError, match="begins with two beginning-of-sequence tokens"):
            check_format(doubled, RECORDS)
