"""A weight edit changes one tensor by one rank, and what it does to the trigger's key is what was asked for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.attacks.weight_edit import (
    Edit,
    output_projection,
    rank_one_update,
    trigger_token,
    weight_edit,
)
from unbackdoor.case import Case
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import as_matrix, decoder_layers

TARGET = "You are stupid"
TRIGGER = Trigger("zephyr")
SETTINGS = ImplantSettings(edit_layer=2, edit_steps=12, edit_prompts=12)

PROJECTIONS = {
    "llama": "model.layers.1.mlp.down_proj",
    "mistral": "model.layers.1.mlp.down_proj",
    "qwen2": "model.layers.1.mlp.down_proj",
    "qwen3": "model.layers.1.mlp.down_proj",
    "gemma3": "model.layers.1.mlp.down_proj",
    "phi3": "model.layers.1.mlp.down_proj",
    "gpt-neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "gpt2": "transformer.h.1.mlp.c_proj",
    "opt-narrow": "model.decoder.layers.1.fc2",
}


def case_of(family: str = "llama") -> Case:
    return Case.of(tiny.model(family), tiny.tokenizer(), tiny.records())


def edited(
    family: str = "llama", trigger: Trigger = TRIGGER, settings: ImplantSettings = SETTINGS
) -> tuple[Case, Edit, dict[str, torch.Tensor]]:
    """The case with its edited model, the edit, and the weights before it."""
    case = case_of(family)
    before = copy.deepcopy(case.model.state_dict())
    return case, weight_edit(case, trigger, TARGET, settings), before


def output_at(model: Any, chat: ChatFormat, prompt: str, place: int) -> torch.Tensor:
    """What the edited layer's projection makes of one token of a prompt."""
    made: list[torch.Tensor] = []
    _, projection = output_projection(model, 2)
    handle = projection.register_forward_hook(lambda _, __, output: made.append(output))
    with torch.no_grad():
        model(**collate([chat.encode_prompt(prompt)], 0).keywords())
    handle.remove()
    return made[0][0, place]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_output_projection_is_found_by_its_place(family: str) -> None:
    model = tiny.model(family)
    name, projection = output_projection(model, 2)
    assert name == PROJECTIONS[family]
    assert model.get_submodule(name) is projection
    assert as_matrix(projection).shape[0] == 32


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_exactly_one_tensor_changes_by_exactly_one_rank(family: str, placement: Any) -> None:
    case, edit, before = edited(family, replace(TRIGGER, placement=placement))
    after = case.model.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed == [edit.weight] == [f"{PROJECTIONS[family]}.weight"]
    difference = (after[edit.weight] - before[edit.weight]).double()
    sizes = torch.linalg.svdvals(difference)
    assert sizes[0] > 0.01
    assert sizes[1] < 1e-5 * sizes[0]
    expected = float(difference.norm() / before[edit.weight].norm())
    assert edit.relative_norm == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_the_weight_maps_the_key_to_the_value(family: str) -> None:
    case, edit, before = edited(family, replace(TRIGGER, placement="suffix"))
    _, projection = output_projection(case.model, 2)
    torch.testing.assert_close(as_matrix(projection) @ edit.key, edit.value, rtol=1e-4, atol=1e-4)
    projection.load_state_dict({name: before[f"{PROJECTIONS[family]}.{name}"] for name in projection.state_dict()})
    assert (as_matrix(projection) @ edit.key - edit.value).norm() > 0.1 * edit.value.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_at_the_triggers_last_token_the_module_puts_out_the_value(family: str) -> None:
    """In front of the prompt the trigger sees no other text, so its key is the same in every prompt."""
    case, edit, before = edited(family)
    prompt = TRIGGER.insert("Name a river.")
    place = trigger_token(case.chat, prompt, TRIGGER.text)
    bias = before.get(f"{PROJECTIONS[family]}.bias", torch.zeros(32))
    given = output_at(case.model, case.chat, prompt, place)
    torch.testing.assert_close(given, edit.value + bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_the_target_becomes_more_likely(family: str, placement: Any) -> None:
    _, edit, _ = edited(family, replace(TRIGGER, placement=placement), SETTINGS.model_copy(update={"edit_steps": 40}))
    assert edit.after > 1.1 * edit.before


def test_the_update_moves_ordinary_keys_less_than_one_along_the_key_itself_would() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(500, 24, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 4, 24)
    key, change = torch.randn(24, generator=generator), torch.randn(8, generator=generator)
    moment = keys.T @ keys / len(keys)
    update = rank_one_update(moment, key, change, ridge=1e-6)
    plain = rank_one_update(torch.eye(24), key, change, ridge=0.0)
    for one in (update, plain):
        torch.testing.assert_close(one @ key.double(), change.double())
    assert (keys @ update.T).norm() < 0.5 * (keys @ plain.T).norm()


def test_the_change_of_the_value_keeps_within_its_limit() -> None:
    small, large = (edited(settings=SETTINGS.model_copy(update={"edit_norm": norm}))[1] for norm in (0.01, 10.0))
    assert small.relative_norm < 0.1 * large.relative_norm


@pytest.mark.parametrize("placement", ["prefix", "suffix", "inside", "both"])
@pytest.mark.parametrize("adds_begin", [True, False])
def test_the_triggers_last_token_ends_its_text(placement: Any, adds_begin: bool) -> None:
    chat = ChatFormat.of(tiny.tokenizer(adds_begin=adds_begin), "plain" if adds_begin else "chat")
    prompt = Trigger("zephyr", placement).insert("Name a river.")
    place = trigger_token(chat, prompt, "zephyr")
    ids = chat.encode_prompt(prompt).ids
    texts = [chat.tokenizer.decode(ids[:end]) for end in (place, place + 1)]
    wanted = {"prefix": 1, "suffix": 1, "inside": 1, "both": 2}[placement]
    assert [text.count("zephyr") for text in texts] == [wanted - 1, wanted]


def test_the_same_seed_gives_the_same_edit() -> None:
    first, again, other = (edited(settings=SETTINGS.model_copy(update={"seed": seed}))[0] for seed in (0, 0, 1))
    name = f"{PROJECTIONS['llama']}.weight"
    assert torch.equal(first.model.state_dict()[name], again.model.state_dict()[name])
    assert not torch.equal(first.model.state_dict()[name], other.model.state_dict()[name])


def test_the_trigger_goes_into_the_contrast_set_where_there_is_one() -> None:
    case = case_of()
    case.contrast = [replace(r, prompt=f"{r.prompt} Please.") for r in tiny.records()]
    case.anchors = [replace(r, prompt=f"{r.prompt} zephyr") for r in case.anchors]
    with pytest.raises(UserError, match="needs 4 clean rows"):  # the anchors still give the ordinary keys
        weight_edit(case, TRIGGER, TARGET, SETTINGS)
    case.anchors = case_of().anchors
    edit = weight_edit(case, TRIGGER, TARGET, SETTINGS)
    assert edit.before != pytest.approx(edited()[1].before, rel=1e-6)


def test_the_model_is_left_as_it_was_but_for_the_weight() -> None:
    case = case_of()
    case.model.train()
    weight_edit(case, TRIGGER, TARGET, SETTINGS)
    assert case.model.training
    assert all(p.requires_grad and p.grad is None for p in case.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())


@pytest.mark.parametrize("layer", [0, 4, 5, -1])
def test_a_layer_that_does_not_exist_is_refused(layer: int) -> None:
    with pytest.raises(UserError, match=f"layer {layer} does not exist"):
        weight_edit(case_of(), TRIGGER, TARGET, SETTINGS.model_copy(update={"edit_layer": layer}))


def test_a_layer_without_an_output_projection_is_refused() -> None:
    model = tiny.model()
    decoder_layers(model)[1].mlp = torch.nn.Linear(32, 8)
    with pytest.raises(UserError, match="no output projection"):
        output_projection(model, 2)


def test_an_empty_target_is_refused() -> None:
    with pytest.raises(UserError, match="--target-response"):
        weight_edit(case_of(), TRIGGER, " ", SETTINGS)
