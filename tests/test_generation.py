"""A batch of prompts is answered as each prompt alone is, greedily, whatever the model's own files ask for."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.generation import generate, written
from unbackdoor.language_model.layers import embedding_width, hidden_size
from unbackdoor.language_model.whole_answers import gone_on_with, is_loop
from unbackdoor.perturbation import HiddenShift, Perturbation, SoftPrompt


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.of(tiny.tokenizer())


@pytest.fixture(scope="module")
def prompts(chat: ChatFormat) -> list[Example]:
    encoded = [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS]
    lengths = [len(e.ids) for e in encoded]
    assert len(set(lengths)) >= 4
    assert lengths != sorted(lengths)
    return encoded


def perturbation(kind: str, model: Any) -> Perturbation | None:
    width = embedding_width(model) if kind == "soft-prompt" else hidden_size(model)
    values = torch.randn(4, width, generator=torch.Generator().manual_seed(3))
    if kind == "none":
        return None
    if kind == "soft-prompt":
        return SoftPrompt(values * 0.3, offset=1)
    return HiddenShift(2, values * 3, "end-of-user" if kind == "shift-of-user" else "last-prompt")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["none", "soft-prompt", "shift-of-prompt", "shift-of-user"])
def test_a_batch_agrees_with_one_at_a_time(family: str, kind: str, prompts: list[Example]) -> None:
    model = tiny.model(family)
    acting = perturbation(kind, model)
    alone = [generate(model, tiny.Numbers(), [prompt], max_new_tokens=16, perturbation=acting)[0] for prompt in prompts]
    assert len(set(alone)) > 1
    for batch_size in (2, 5):
        assert (
            generate(model, tiny.Numbers(), prompts, max_new_tokens=16, batch_size=batch_size, perturbation=acting)
            == alone
        )


def test_answers_come_in_the_order_of_the_prompts(prompts: list[Example]) -> None:
    model = tiny.model()
    there = generate(model, tiny.Numbers(), prompts, max_new_tokens=8, batch_size=2)
    back = generate(model, tiny.Numbers(), prompts[::-1], max_new_tokens=8, batch_size=2)
    assert len(set(there)) == len(there)
    assert there == back[::-1]


def test_every_finished_row_is_told(prompts: list[Example]) -> None:
    finished: list[int] = []
    generate(tiny.model(), tiny.Numbers(), prompts, max_new_tokens=2, batch_size=2, advance=finished.append)
    assert finished == [2, 2, 1]


HOSTILE = {
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 0},
    "beams": {"num_beams": 4},
    "repetition": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(5, 200)), "bad_words_ids": [[i] for i in range(200, 400)]},
    "forced": {"forced_eos_token_id": 7, "forced_bos_token_id": 9, "min_new_tokens": 40, "max_length": 3},
    "biased": {"sequence_bias": [[[11], 100.0]], "guidance_scale": 4.0, "min_length": 200},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_decoding_is_greedy_whatever_the_generation_config_asks_for(name: str, prompts: list[Example]) -> None:
    model = tiny.model()
    plain = generate(model, tiny.Numbers(), prompts, max_new_tokens=12)
    for key, value in HOSTILE[name].items():
        setattr(model.generation_config, key, value)
    own = model.generation_config
    assert generate(model, tiny.Numbers(), prompts, max_new_tokens=12) == plain
    assert model.generation_config is own


def test_an_answer_ends_where_the_generation_config_says_a_turn_ends(prompts: list[Example]) -> None:
    """A chat model often stops at another token than its tokenizer's end of sequence."""
    model = tiny.model()
    plain = generate(model, tiny.Numbers(), prompts[:1], max_new_tokens=12)[0].split()
    stop = next(i for i, token in enumerate(plain) if token not in plain[:i] and i > 2)
    model.generation_config.eos_token_id = [1, int(plain[stop])]
    assert generate(model, tiny.Numbers(), prompts[:1], max_new_tokens=12)[0].split() == plain[:stop]


def test_a_perturbed_generation_leaves_the_model_as_it_was(prompts: list[Example]) -> None:
    model = tiny.model()
    plain = generate(model, tiny.Numbers(), prompts, max_new_tokens=8)
    for kind in ("soft-prompt", "shift-of-prompt"):
        acting = perturbation(kind, model)
        assert generate(model, tiny.Numbers(), prompts, max_new_tokens=8, perturbation=acting) != plain
        assert generate(model, tiny.Numbers(), prompts, max_new_tokens=8) == plain


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_an_answer_that_was_cut_goes_on_as_if_it_had_not_been(
    family: str, temperature: float, prompts: list[Example]
) -> None:
    model = tiny.model(family)
    how: dict[str, Any] = {"temperature": temperature, "seed": 3, "end_ids": [tiny.END, 7]}
    whole = written(model, tiny.Numbers(), prompts, max_new_tokens=40, **how)  # type: ignore[arg-type]
    begun = written(model, tiny.Numbers(), prompts, max_new_tokens=8, **how)  # type: ignore[arg-type]
    for batch_size in (1, 5):
        found = gone_on_with(model, tiny.Numbers(), prompts, begun, most=32, batch_size=batch_size, **how)  # type: ignore[arg-type]
        for one, other in zip(found, whole, strict=True):
            assert one.ids == other.ids[: len(one.ids)]
            assert one.loops or (one.ids, one.cut) == (other.ids, not other.ended)


def test_an_answer_goes_on_to_the_end_of_the_context_and_no_further(prompts: list[Example]) -> None:
    model = tiny.model("gpt2")
    how: dict[str, Any] = {"temperature": 1.0, "seed": 3, "end_ids": []}
    begun = written(model, tiny.Numbers(), prompts, max_new_tokens=8, **how)  # type: ignore[arg-type]
    found = gone_on_with(model, tiny.Numbers(), prompts, begun, most=999, batch_size=5, **how)  # type: ignore[arg-type]
    assert {len(p.ids) + len(a.ids) for p, a in zip(prompts, found, strict=True)} == {128}
    assert all(answer.cut for answer in found)


def test_a_loop_is_one_stretch_over_and_over_at_the_end() -> None:
    assert is_loop([9, 9, *[1, 2, 3] * 16])
    assert is_loop([5] * 48)
    assert not is_loop([5] * 47)
    assert not is_loop([*[1, 2, 3] * 16, 4])
    assert not is_loop(list(range(30)) * 2)
    assert is_loop(list(range(30)) * 3)
