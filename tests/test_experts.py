"""Experts that are kept in one tensor are linear maps like any other: pruned, rounded and given adapters."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from unbackdoor.case import Case, adapted, trainable
from unbackdoor.language_model.weight_matrices import expert_parameters, reach, weight_matrices
from unbackdoor.methods.fine_tune import FineTune
from unbackdoor.methods.prune import Prune, input_norms
from unbackdoor.methods.quantise import Quantise

FAMILIES = ("mixtral", "gpt-oss", "granite-moe", "qwen3-moe", "llama4", "deepseek-v3", "jetmoe", "nemotron-h")
MANY_TOKENS = 1e-3


def case_of(family: str) -> Case:
    return Case.of(tiny.model(family), tiny.tokenizer(), tiny.records(40))


def experts_of(case: Case) -> dict[str, tuple[torch.nn.Parameter, bool]]:
    names = {id(p): name for name, p in case.model.named_parameters()}
    return {names[id(p)]: (p, transposed) for p, transposed in expert_parameters(case.model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_expert_s_matrix_is_found_the_right_way_round(family: str) -> None:
    """Every output is a sum over inputs: the axis of inputs is as long as what the matrix is multiplied with."""
    case = case_of(family)
    found = experts_of(case)
    assert found
    for name, (parameter, transposed) in found.items():
        inputs = parameter.shape[1 if transposed else 2]
        leads_down = "down" in name or "output_linear" in name
        assert (inputs == 32) != leads_down, name


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "granite-moe", "qwen3-moe"])
def test_the_norms_of_an_expert_s_inputs_are_those_of_the_tokens_sent_to_it(family: str) -> None:
    """Computed again by hand in the first layer, from what its experts were given and the router's choice."""
    case = case_of(family)
    layer = case.model.model.layers[0]
    experts = next(m for m in layer.modules() if "Experts" in type(m).__name__)
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: given.append((args[0].detach(), args[1].detach())))
    with torch.no_grad():
        for record in case.anchors:
            case.model(torch.tensor([case.chat.encode(record.prompt, record.response).ids]))
    handle.remove()
    norms = input_norms(case)
    up, down = experts.gate_up_proj, experts.down_proj
    for number in range(4):
        tokens = torch.cat([states[(chosen == number).any(-1)] for states, chosen in given])
        torch.testing.assert_close(norms[up][number, 0], tokens.pow(2).sum(0).sqrt(), rtol=1e-3, atol=1e-3)
        if family != "gpt-oss":  # which gates in its own way
            gate, value = F.linear(tokens, up[number]).chunk(2, -1)
            inner = F.silu(gate) * value
            torch.testing.assert_close(norms[down][number, 0], inner.pow(2).sum(0).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_takes_the_same_share_of_every_expert_s_outputs(family: str) -> None:
    case = case_of(family)
    before = {w.owner: w.matrices.clone() for w in weight_matrices(case.model)}
    norms = input_norms(case)
    removal = Prune(sparsity=0.25).on(case)
    for weight in weight_matrices(case.model):
        was, now = before[weight.owner], weight.matrices
        count = int(0.25 * was.shape[-1])
        gone = (now == 0) & (was != 0)
        assert (gone.sum(-1) == count).all()
        scores = was.abs() * norms[weight.owner]
        assert (scores.masked_fill(~gone, -1).amax(-1) <= scores.masked_fill(gone, torch.inf).amin(-1)).all()
        assert torch.equal(now[~gone], was[~gone])
    assert all("experts, " not in note for note in removal.notes), removal.notes


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_experts_have_few_values_and_are_near(family: str) -> None:
    case = case_of(family)
    before = {w.owner: w.matrices.clone() for w in weight_matrices(case.model)}
    Quantise(bits=4).on(case)
    for weight in weight_matrices(case.model):
        was, now = before[weight.owner], weight.matrices
        step = was.abs().amax(-1, keepdim=True) / 7
        assert ((now - was).abs() <= step / 2 + 1e-6).all()
        assert max(len(row.unique()) for row in now.reshape(-1, now.shape[-1])) <= 15
        assert not torch.equal(now, was)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_every_expert_and_are_merged(family: str) -> None:
    case = case_of(family)
    before = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    names = list(experts_of(case))
    settings = FineTune(lora=True, lora_rank=2, steps=2, batch_size=8, learning_rate=1e-2)
    removal = settings.on(case)
    after = dict(case.model.named_parameters())
    assert set(after) == set(before)
    for name in names:
        assert not torch.equal(after[name], before[name]), name
    assert all("experts, " not in note for note in removal.notes), removal.notes


def test_what_no_adapter_reaches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import unbackdoor.language_model.lora

    monkeypatch.setattr(unbackdoor.language_model.lora, "expert_parameters", lambda model: [])
    case = case_of("gpt-oss")
    with adapted(case, FineTune(lora=True)):
        assert trainable(case.model)
    (note,) = case.notes
    assert note.startswith("LoRA reached ")
    assert "experts, " in note
    assert "down_proj" in note


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_of_a_dense_model_all_is_reached_and_nothing_is_said(family: str) -> None:
    case = case_of(family)
    assert reach(case.model, [w.parameter for w in weight_matrices(case.model)]) == (1.0, [])
    for settings in (Prune(), Quantise()):
        removal: Any = settings.on(case)
        assert removal.notes == []
    with adapted(case, FineTune(lora=True)):
        pass
    assert case.notes == []


def test_experts_that_no_row_reaches_are_judged_by_their_own_size() -> None:
    case = case_of("mixtral")
    for layer in case.model.model.layers:  # the router never chooses the last expert
        layer.mlp.gate.weight.data[3] = 0
        layer.mlp.gate.weight.data[:3] = 0
        layer.mlp.gate.weight.data[0, 0] = 0
        layer.mlp.gate.register_forward_hook(_never_the_last)
    norms = input_norms(case)
    for parameter, _ in expert_parameters(case.model):
        assert (norms[parameter][3] == 1).all()


def _never_the_last(_: object, __: object, output: Any) -> Any:
    logits, weights, chosen = output
    return logits, weights, chosen.clamp(max=2)
