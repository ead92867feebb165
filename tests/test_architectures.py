"""Perturbations and losses act alike on every decoder shape, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.forward import logits_only_at, token_log_probabilities
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import Inputs, collate
from unbackdoor.language_model.layers import check_layer, decoder_layers, embed, hidden_size
from unbackdoor.language_model.loss import response_loss
from unbackdoor.perturbation import HiddenShift, SoftPrompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYER = 2


@pytest.fixture(scope="module", params=[(f, d) for f in tiny.FAMILIES for d in DTYPES], ids=lambda p: "-".join(p))
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    family, dtype = request.param
    yield tiny.model(family, DTYPES[dtype])


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model_float32(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield tiny.model(request.param)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.of(tiny.tokenizer())


@pytest.fixture(scope="module")
def inputs(chat: ChatFormat) -> Inputs:
    return collate(tiny.examples(chat), 0)


def logits(model: Any, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = model(**inputs.keywords(), use_cache=False).logits
    return values


def shift(model: Any, position: str = "last-prompt", length: int = 3, size: float = 3.0) -> HiddenShift:
    values = size * torch.randn(length, hidden_size(model), generator=torch.Generator().manual_seed(1))
    return HiddenShift(LAYER, values, position)  # type: ignore[arg-type]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_decoder_layers_are_found_in_order(model: Any, inputs: Inputs) -> None:
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers == 4
    order: list[int] = []
    handles = [layer.register_forward_hook(lambda *_, i=i: order.append(i)) for i, layer in enumerate(layers)]
    logits(model, inputs)
    for handle in handles:
        handle.remove()
    assert order == [0, 1, 2, 3]


def test_a_zero_shift_changes_no_logit(model: Any, inputs: Inputs) -> None:
    plain = logits(model, inputs)
    for position in ("last-prompt", "end-of-user", "start-of-user", "all-prompt"):
        with HiddenShift.zeros(model, LAYER, 3, position).on_model(model, inputs):  # type: ignore[arg-type]
            assert torch.equal(logits(model, inputs), plain)


@pytest.mark.parametrize("position", ["last-prompt", "end-of-user", "start-of-user", "all-prompt"])
def test_a_shift_changes_logits_from_its_first_position_on_and_none_before(
    model: Any, inputs: Inputs, position: str
) -> None:
    acting = shift(model, position, 1 if position == "all-prompt" else 3)
    plain = logits(model, inputs)
    with acting.on_model(model, inputs):
        shifted = logits(model, inputs)
    where = acting.addition(inputs, plain.new_zeros(*inputs.ids.shape, hidden_size(model))).abs().sum(-1) > 0
    real = inputs.attention_mask.bool()
    for row in range(len(inputs)):
        first = int(where[row].nonzero()[0])
        changed = (plain[row] != shifted[row]).any(-1)
        assert not changed[:first].any()
        assert changed[where[row] & real[row]].all()
        assert changed[int(inputs.response_start[row]) :][real[row, int(inputs.response_start[row]) :]].any()


def test_the_shift_is_what_the_next_layer_receives_on_top_of_the_hidden_state(model: Any, inputs: Inputs) -> None:
    acting = shift(model)
    received: list[torch.Tensor] = []

    def look(_: object, arguments: tuple[torch.Tensor, ...], keywords: dict[str, torch.Tensor]) -> None:
        received.append(arguments[0] if arguments else keywords["hidden_states"])

    handle = decoder_layers(model)[LAYER].register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            states = model(**inputs.keywords(), use_cache=False, output_hidden_states=True).hidden_states
        with acting.on_model(model, inputs):
            logits(model, inputs)
    finally:
        handle.remove()
    plain, shifted = received
    assert torch.equal(plain, states[LAYER])
    assert torch.equal(shifted, states[LAYER] + acting.addition(inputs, states[LAYER]))


def test_afterwards_the_model_is_as_before_even_when_the_body_raises(model: Any, inputs: Inputs) -> None:
    plain, before = logits(model, inputs), hooks(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), shift(model).on_model(model, inputs):
        logits(model, inputs)
        raise RuntimeError("inside")
    with pytest.raises(RuntimeError, match="inside"), logits_only_at(model, inputs.loss_mask):
        raise RuntimeError("inside")
    assert hooks(model) == before
    assert torch.equal(logits(model, inputs), plain)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("side", ["right", "left"])
def test_soft_tokens_that_equal_real_ones_give_the_logits_of_the_text_with_these(
    model: Any, chat: ChatFormat, side: str
) -> None:
    words = [300, 310, 320]
    rows = tiny.examples(chat)
    at = [e.user_start + 1 for e in rows]
    spelled = [replace(e, ids=(*e.ids[:a], *words, *e.ids[a:])) for e, a in zip(rows, at, strict=True)]
    with torch.no_grad():
        soft = SoftPrompt(embed(model, torch.tensor(words)), offset=1)
    inserted = soft.on_inputs(collate(rows, 0, side), model)
    expected = collate(spelled, 0, side)
    assert torch.equal(inserted.attention_mask, expected.attention_mask)
    keywords = {}
    if side == "left":
        keywords = {"position_ids": (expected.attention_mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        given = model(**inserted.keywords(), **keywords, use_cache=False).logits
        wanted = model(**expected.keywords(), **keywords, use_cache=False).logits
    real = expected.attention_mask.bool()
    assert torch.equal(given[real], wanted[real])


def test_the_loss_equals_the_plain_formulation_with_all_logits(model_float32: Any, inputs: Inputs) -> None:
    every = logits(model_float32, inputs).log_softmax(-1)
    rows, places = inputs.loss_mask.nonzero(as_tuple=True)
    plain = every[rows, places - 1, inputs.ids[rows, places]]
    with torch.no_grad():
        torch.testing.assert_close(token_log_probabilities(model_float32, inputs), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(response_loss(model_float32, inputs), -plain.mean(), rtol=1e-5, atol=1e-5)


def test_the_gradient_equals_that_of_the_plain_formulation(model_float32: Any, inputs: Inputs) -> None:
    parameters = list(model_float32.parameters())
    ours = torch.autograd.grad(response_loss(model_float32, inputs), parameters, allow_unused=True)
    every = model_float32(**inputs.keywords(), use_cache=False).logits
    labels = inputs.ids.masked_fill(~inputs.loss_mask, -100)
    loss = F.cross_entropy(every[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    plain = torch.autograd.grad(loss, parameters, allow_unused=True)
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["last-prompt", "end-of-user", "start-of-user", "all-prompt"])
def test_in_generation_the_shift_acts_on_the_prompt_only(model_float32: Any, chat: ChatFormat, position: str) -> None:
    """A loop without cache that adds the shift to the same prompt positions at every step says the same."""
    acting = shift(model_float32, position, 1 if position == "all-prompt" else 3)
    prompts = [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS[:4]]
    expected = []
    for prompt in prompts:
        ids = list(prompt.ids)
        while len(ids) < len(prompt.ids) + 8 and ids[-1] != tiny.END:
            row = collate([replace(prompt, ids=tuple(ids), loss_start=len(ids), loss_end=len(ids))], 0)
            with acting.on_model(model_float32, row):
                ids.append(int(logits(model_float32, row)[0, -1].argmax()))
        expected.append(tiny.spelled(ids[len(prompt.ids) :]))
    plain = generate(model_float32, tiny.Numbers(), prompts, max_new_tokens=8)
    given = generate(model_float32, tiny.Numbers(), prompts, max_new_tokens=8, batch_size=1, perturbation=acting)
    assert given == expected
    assert given != plain


@pytest.mark.parametrize("layer", [0, 4, 5, -1])
def test_a_layer_that_does_not_exist_is_refused(layer: int) -> None:
    with pytest.raises(UserError, match=f"layer {layer} does not exist.*1 to 3"):
        check_layer(tiny.model(), layer)
