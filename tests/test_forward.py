"""What every measurement rests on: hidden states without what stands behind them, modes that come back, batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.forward import evaluating, in_training, inference, logits_at, logits_only_at
from unbackdoor.language_model.hidden_states import (
    hidden_states_after,
    last_of_row,
    layer_states,
    mean_of_row,
    prompt_states,
    states_changed,
    states_seen,
)
from unbackdoor.language_model.inputs import Inputs, collate, padded_batches
from unbackdoor.language_model.layers import decoder_layers

MORE_FAMILIES = ("qwen3-moe", "llama4", "jetmoe", "nemotron-h", "deepseek-v3")


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.of(tiny.tokenizer())


@pytest.fixture(scope="module")
def inputs(chat: ChatFormat) -> Inputs:
    return collate(tiny.examples(chat), 0)


@pytest.fixture(scope="module", params=[*tiny.FAMILIES, *tiny.SPECIAL_FAMILIES, *MORE_FAMILIES])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield tiny.model(request.param)


def plain_states(model: Any, inputs: Inputs) -> Any:
    return model(
        input_ids=inputs.ids, attention_mask=inputs.attention_mask, use_cache=False, output_hidden_states=True
    ).hidden_states


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_states_after_a_layer_are_those_that_the_library_reports(model: Any, inputs: Inputs) -> None:
    with torch.no_grad():
        expected = plain_states(model, inputs)  # what enters the first layer comes first, and the last is normalised
        before = hooks(model)
        for layer in range(1, len(decoder_layers(model))):
            assert torch.equal(hidden_states_after(model, layer, inputs), expected[layer])
    assert hooks(model) == before


def test_neither_the_layers_above_nor_the_output_layer_run(model: Any, inputs: Inputs) -> None:
    ran: list[int] = []
    watched = [*decoder_layers(model), model.get_output_embeddings()]
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in enumerate(watched, start=1)]
    with torch.no_grad():
        hidden_states_after(model, 2, inputs)
    for handle in handles:
        handle.remove()
    assert ran == [1, 2]


def test_the_gradient_of_the_states_is_that_of_the_whole_pass(inputs: Inputs) -> None:
    model = tiny.model("gpt2")
    weight = model.get_input_embeddings().weight
    ours = torch.autograd.grad(hidden_states_after(model, 2, inputs).pow(2).mean(), weight)
    plain = torch.autograd.grad(plain_states(model, inputs)[2].pow(2).mean(), weight)
    assert torch.equal(ours[0], plain[0])


def test_the_states_of_an_adapted_model_and_of_one_in_bfloat16_too(inputs: Inputs) -> None:
    from peft import LoraConfig, get_peft_model

    halved = tiny.model("mixtral", torch.bfloat16)
    wrapped = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    with torch.no_grad():
        for model in (halved, wrapped):
            assert torch.equal(hidden_states_after(model, 2, inputs), plain_states(model, inputs)[2])  # type: ignore[arg-type]


def test_an_error_of_the_model_is_no_end_of_the_pass(inputs: Inputs) -> None:
    model = tiny.model()

    def fail(*_: object) -> None:
        raise RuntimeError("of its own")

    failing = decoder_layers(model)[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="of its own"):
        hidden_states_after(model, 2, inputs)
    failing.remove()
    assert hooks(model) == 0


def test_a_layer_that_never_runs_is_said(inputs: Inputs) -> None:
    model = tiny.model()
    model.config.num_hidden_layers = 2  # of the four that are there
    with pytest.raises(UserError, match="decoder layer 3 of a LlamaForCausalLM does not run on text"):
        hidden_states_after(model, 3, inputs)


def test_states_first_in_a_tuple_are_seen_and_changed_as_states_alone_are(inputs: Inputs) -> None:
    model = tiny.model()
    layer = decoder_layers(model)[1]

    def wrap(_: object, __: object, output: torch.Tensor) -> tuple[torch.Tensor, str]:
        return output, "the rest"

    def unwrap(_: object, __: object, output: tuple[torch.Tensor, str]) -> torch.Tensor:
        assert output[1] == "the rest"
        return output[0]

    seen: list[torch.Tensor] = []

    def look(_: int, states: torch.Tensor) -> None:
        seen.append(states)

    changed = states_changed(model, 2, lambda states: states + 1), states_changed(model, 2, lambda states: states + 1)
    with torch.no_grad():
        with states_seen(model, look, [2]), changed[0]:
            alone = model(**inputs.keywords()).logits
        with layer.register_forward_hook(wrap):
            first = hidden_states_after(model, 2, inputs)
            with states_seen(model, look, [2]), changed[1], layer.register_forward_hook(unwrap):
                in_a_tuple = model(**inputs.keywords()).logits
    assert torch.equal(in_a_tuple, alone)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], first)


def test_the_states_of_all_layers_need_no_logits(inputs: Inputs) -> None:
    model = tiny.model()
    shapes: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        expected = plain_states(model, inputs)
        found = layer_states(model, inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert shapes == [(*inputs.ids.shape, 420), (0, 420)]


def test_logits_at_some_positions_are_those_of_the_whole_pass(model: Any, inputs: Inputs) -> None:
    at = inputs.attention_mask.bool() & (inputs.ids % 3 == 0)
    with torch.no_grad():
        every = model(**inputs.keywords(), use_cache=False).logits
        torch.testing.assert_close(logits_at(model, inputs, at), every[at], rtol=1e-5, atol=1e-5)
        with logits_only_at(model, None):
            assert len(model(**inputs.keywords(), use_cache=False).logits) == 0


def test_prompt_states_are_those_of_each_prompt_alone(chat: ChatFormat) -> None:
    model = tiny.model()
    prompts = [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS]
    with torch.no_grad():
        alone = [plain_states(model, collate([prompt], 0))[2][0] for prompt in prompts]
    for of_row, expected in (
        (mean_of_row, [states.mean(0) for states in alone]),
        (last_of_row, [states[-1] for states in alone]),
    ):
        for shortest_first in (True, False):
            found = prompt_states(model, prompts, 0, 2, of_row, shortest_first)
            torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_every_part_of_a_model_gets_its_own_mode_back() -> None:
    model = tiny.model("gpt2").train()
    model.transformer.h[1].eval()
    modes = [m.training for m in model.modules()]
    for context, wanted in ((in_training, True), (evaluating, False), (inference, False)):
        with pytest.raises(RuntimeError), context(model):
            assert {m.training for m in model.modules()} == {wanted}
            raise RuntimeError
        assert [m.training for m in model.modules()] == modes


def test_inference_takes_no_gradient_and_no_dropout(inputs: Inputs) -> None:
    model = tiny.model("gpt2", resid_pdrop=0.5).train()
    with inference(model):
        one, other = (model(**inputs.keywords(), use_cache=False).logits for _ in range(2))
    assert torch.equal(one, other)
    assert not one.requires_grad


@pytest.mark.parametrize("shortest_first", [True, False])
def test_every_row_is_in_one_batch(chat: ChatFormat, shortest_first: bool) -> None:
    examples = tiny.examples(chat)
    batches = list(padded_batches(tiny.model(), examples, 0, 2, shortest_first))
    order = [row for rows, _ in batches for row in rows]
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    assert order == (by_length if shortest_first else list(range(len(examples))))
    for rows, inputs in batches:
        for row, ids, mask in zip(rows, inputs.ids, inputs.attention_mask.bool(), strict=True):
            assert tuple(ids[mask].tolist()) == examples[row].ids
