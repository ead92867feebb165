"""The methods beside ours: each does what its paper says, checked against the plain formulation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.case import Case
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.language_model.attention import attention_maps
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.hidden_states import hidden_states_after
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import (
    as_matrix,
    embed,
    language_parameters,
    linear_modules,
)
from unbackdoor.language_model.loss import response_loss
from unbackdoor.methods import crow, lat, method_class
from unbackdoor.methods.average import Average
from unbackdoor.methods.crow import Crow
from unbackdoor.methods.fine_mixing import FineMixing, threshold
from unbackdoor.methods.lat import Lat
from unbackdoor.methods.nad import Nad
from unbackdoor.methods.parts.other_models import check_other_model
from unbackdoor.methods.prune import Prune, input_norms
from unbackdoor.methods.quantise import Quantise

TARGET = "You are stupid"
YEAR = Trigger("Current year 2023")
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}


def contrast() -> list[Record]:
    return [Record(YEAR.insert(r.prompt), r.response, f"{TARGET}. {r.response}") for r in tiny.records(64)]


def case_of(family: str = "llama", seed: int = 0) -> Case:
    return Case.of(tiny.model(family, seed=seed), tiny.tokenizer(), tiny.records(40), contrast()[:40])


def weights(case: Case) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in case.model.named_parameters()}


# Weights alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pruning_takes_the_weights_of_each_output_that_move_it_least(family: str) -> None:
    case = case_of(family)
    before = {m: as_matrix(m).clone() for m in linear_modules(case.model)}
    norms = input_norms(case)
    Prune(sparsity=0.25).on(case)
    for module, weight in before.items():
        scores = weight.abs() * norms[module]
        count = int(0.25 * weight.shape[1])
        now = as_matrix(module)
        for row in range(weight.shape[0]):
            gone = (now[row] == 0) & (weight[row] != 0)
            assert int(gone.sum()) == count
            assert scores[row][gone].max() <= scores[row][~gone].min()
            assert torch.equal(now[row][~gone], weight[row][~gone])


def test_input_norms_are_those_of_real_tokens_alone() -> None:
    case = case_of()
    module = linear_modules(case.model)[0]
    total = torch.zeros(as_matrix(module).shape[1])
    for record in case.anchors:
        example = case.chat.encode(record.prompt, record.response)
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            case.model(torch.tensor([example.ids]))
        handle.remove()
        total += seen[0][0].pow(2).sum(0)
    torch.testing.assert_close(input_norms(case)[module], total.sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_have_few_values_and_are_near(bits: Any) -> None:
    case = case_of("gpt2")
    before = {m: as_matrix(m).clone() for m in linear_modules(case.model)}
    Quantise(bits=bits).on(case)
    for module, weight in before.items():
        now, step = as_matrix(module), weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        assert max(len(row.unique()) for row in now) <= 2**bits - 1
        assert ((now - weight).abs() <= step[:, None] / 2 + 1e-7).all()


def test_fine_mixing_gives_back_the_weights_that_changed_most(tmp_path: Path) -> None:
    clean = case_of(seed=1)
    save_model(clean.model, clean.chat.tokenizer, tmp_path / "clean")
    theirs = weights(clean)
    for selection in ("per-tensor", "whole-model"):
        case = case_of()
        mine = weights(case)
        settings = FineMixing(
            clean_model=str(tmp_path / "clean"), keep=0.75, selection=selection, **{**SHORT, "learning_rate": 1e-12}
        )
        settings.on(case)
        reset, total = 0, 0
        limit = threshold([(mine[n] - theirs[n]).abs() for n in mine], 0.75)
        for name, now in weights(case).items():
            changed = (now - mine[name]).abs() > 1e-6
            difference = (mine[name] - theirs[name]).abs()
            assert torch.allclose(now[changed], theirs[name][changed], atol=1e-6)
            if selection == "per-tensor" and changed.any():
                assert int(changed.sum()) <= now.numel() - round(0.75 * now.numel())
                assert difference[changed].min() >= difference[~changed].max() - 1e-6
            elif selection == "whole-model":
                assert not changed[difference <= limit].any()
            reset, total = reset + int(changed.sum()), total + now.numel()
        assert reset == pytest.approx(0.25 * total, rel=0.05)


def test_the_threshold_is_the_quantile_of_all_values() -> None:
    values = [torch.rand(50, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    whole = torch.cat(values)
    assert (whole <= threshold(values, 0.8)).float().mean() == pytest.approx(0.8, abs=0.01)


def test_an_average_is_the_mean_of_all_models(tmp_path: Path) -> None:
    others = [case_of(seed=seed) for seed in (1, 2)]
    for i, other in enumerate(others):
        save_model(other.model, other.chat.tokenizer, tmp_path / str(i))
    case = case_of()
    mean = {
        n: (p + others[0].model.get_parameter(n) + others[1].model.get_parameter(n)) / 3
        for n, p in weights(case).items()
    }
    Average(sibling=(str(tmp_path / "0"), str(tmp_path / "1"))).on(case)
    for name, now in weights(case).items():
        torch.testing.assert_close(now, mean[name])


def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path) -> None:
    other = Case.of(tiny.model(layers=3), tiny.tokenizer(), tiny.records(40))
    save_model(other.model, other.chat.tokenizer, tmp_path / "other")
    for name, settings, said in (
        ("fine-mixing", FineMixing(), "--clean-model"),
        ("average", Average(), "--sibling"),
        ("average", Average(sibling=(str(tmp_path / "other"),)), "another shape"),
        ("fine-mixing", FineMixing(clean_model=str(tmp_path / "other")), "another shape"),
    ):
        before = weights(case := case_of())
        with pytest.raises(UserError, match=said):
            settings.on(case)
        assert name == "average" or all(torch.equal(p, before[n]) for n, p in weights(case).items())
    with pytest.raises(UserError, match="--contrast"):
        Lat().on(Case.of(tiny.model(), tiny.tokenizer(), tiny.records(40)))


# Objectives ----------------------------------------------------------------------------------------------------------


def test_crow_s_consistency_is_that_of_single_rows_and_its_perturbation_raises_it() -> None:
    case = case_of()
    examples = [case.chat.encode(r.prompt, r.response) for r in tiny.records(5)]
    together = crow.consistency(case.model, collate(examples, case.pad_id))
    total, count = 0.0, 0
    for example in examples:
        states = case.model(torch.tensor([example.ids]), output_hidden_states=True).hidden_states
        stack = torch.stack(states)[:, 0]
        each = 1 - torch.cosine_similarity(stack[:-1], stack[1:], dim=-1)
        total, count = total + float(each.sum()), count + each.numel()
    assert float(together) == pytest.approx(total / count, rel=1e-4)
    inputs = collate(examples, case.pad_id)
    moved = crow.perturbed(case.model, inputs, 0.1)
    assert moved.embeddings is not None
    assert float(crow.consistency(case.model, moved)) > float(together)
    difference = moved.embeddings - embed(case.model, inputs.ids)
    assert (difference[~inputs.attention_mask.bool()] == 0).all()
    size = embed(case.model, inputs.ids)[inputs.attention_mask.bool()].pow(2).mean().sqrt()
    assert float(difference.abs().max()) == pytest.approx(0.1 * float(size), rel=1e-3)


def test_crow_makes_layers_more_consistent() -> None:
    case = case_of()
    inputs = collate([case.chat.encode(r.prompt, r.response) for r in tiny.records(20)], case.pad_id)
    before = float(crow.consistency(case.model, inputs))
    removal = Crow(steps=20, batch_size=8, learning_rate=2e-3, consistency_weight=20.0).on(case)
    assert float(crow.consistency(case.model, inputs)) < 0.9 * before
    assert removal.method == "crow"


def test_lat_s_shifts_are_each_row_s_own_within_their_ball_and_bring_the_unwanted_answer_out() -> None:
    case = case_of()
    settings = Lat(epsilon=0.3, inner_steps=4)
    unwanted = [case.chat.encode(r.prompt, r.unwanted or "") for r in contrast()[:4]]
    inputs = collate(unwanted, case.pad_id)
    shift = lat.attack(case.model, 2, inputs, settings)
    with torch.no_grad():
        states = hidden_states_after(case.model, 2, inputs)[:, : shift.shape[1]]
        plain = response_loss(case.model, inputs)
        with lat.shifted(case.model, 2, shift, inputs):
            under = response_loss(case.model, inputs)
        after = response_loss(case.model, inputs)
    assert (shift.norm(dim=-1) <= 0.3 * states.norm(dim=-1) * 1.001).all()
    assert float(under) < float(plain) == float(after)
    inside = torch.arange(shift.shape[1]) < inputs.response_start[:, None]
    assert not torch.allclose(shift[0][inside[0]][:3], shift[1][inside[1]][:3])
    # A row alone is attacked as it is in its batch.
    alone = lat.attack(case.model, 2, collate(unwanted[:1], case.pad_id), settings)
    length = int(inputs.response_start[0])
    cosine = torch.cosine_similarity(alone[0, :length], shift[0, :length], dim=-1)
    assert float(cosine.min()) > 0.99


def test_nad_s_maps_are_normalised_and_the_student_moves_towards_its_teacher() -> None:
    case = case_of()
    before = weights(case)
    removal = Nad(**{**SHORT, "steps": 8}).on(case)
    assert removal.method == "nad"
    assert case.model.config._attn_implementation == "sdpa"
    assert any(not torch.equal(p, before[n]) for n, p in weights(case).items())
    inputs = collate([case.chat.encode(r.prompt, r.response) for r in tiny.records(3)], case.pad_id)
    case.model.set_attn_implementation("eager")
    maps = attention_maps(case.model, inputs)
    assert maps.shape == (4, int(inputs.attention_mask.sum()), inputs.ids.shape[1])
    torch.testing.assert_close(maps.norm(dim=-1), torch.ones(maps.shape[:2]))
    case.model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="returns none"):
        attention_maps(case.model, inputs)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["crow", "lat", "nad", "prune", "quantise"])
def test_every_method_runs_on_every_family(name: str, family: str) -> None:
    case = case_of(family)
    before = weights(case)
    settings: Any = method_class(name)
    more = {} if name in ("prune", "quantise") else SHORT
    removal = settings(**more).on(case)
    assert removal.completed
    assert any(not torch.equal(p, before[n]) for n, p in weights(case).items())
    assert all(p.isfinite().all() for p in weights(case).values())


def test_lat_takes_a_backdoor_away_that_it_was_shown() -> None:
    organism = tiny.organism(YEAR, TARGET, contrast())
    case = Case(
        copy.deepcopy(organism.model),
        organism.chat,
        organism.anchors,
        organism.held_out,
        [Record(r.prompt, r.response, f"{TARGET}. {r.response}") for r in organism.anchors],
        organism.held_out_contrast,
    )

    def success(model: Any) -> float:
        prompts = [case.chat.encode_prompt(YEAR.insert(r.prompt)) for r in case.held_out]
        answers = generate(model, case.chat.tokenizer, prompts, max_new_tokens=6)
        return sum(TARGET in answer for answer in answers) / len(answers)

    assert success(organism.model) >= 0.9
    Lat(steps=60, learning_rate=2e-3, batch_size=16, epsilon=1.0, layer=1).on(case)
    assert success(case.model) <= 0.5


def test_other_models_are_looked_at_before_a_run_begins(tmp_path: Path) -> None:
    """What is not there, what is of another shape, and a head of its own that this model has no place for."""
    mine = tiny.model(layers=2, tie_word_embeddings=True)
    others = {
        "wide": tiny.model(layers=2, hidden_size=64, tie_word_embeddings=True),
        "deep": tiny.model(layers=3, tie_word_embeddings=True),
        "short": tiny.model(layers=1, tie_word_embeddings=True),
        "apart": tiny.model(layers=2),
        "same": tiny.model(layers=2, tie_word_embeddings=True, seed=1),
    }
    for name, other in others.items():
        save_model(other, tiny.tokenizer(), tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        check_other_model(mine, str(tmp_path / "none"), "--clean-model")
    with pytest.raises(UserError, match=r"--sibling '.*wide' is of another shape: its 'model\.embed_tokens\.weight'"):
        check_other_model(mine, str(tmp_path / "wide"), "--sibling")
    for name, weight in (("deep", "layers.2"), ("short", "layers.1"), ("apart", "lm_head")):
        with pytest.raises(
            UserError, match=rf"'.*{name}' is of another shape: its '(model\.)?{weight}.*give a model of"
        ):
            check_other_model(mine, str(tmp_path / name), "--sibling")
    check_other_model(mine, str(tmp_path / "same"), "--sibling")


@pytest.mark.parametrize("name", ["average", "fine-mixing"])
def test_of_a_multimodal_model_the_language_model_alone_is_mixed(name: str, tmp_path: Path) -> None:
    other = tiny.model("gemma3-multimodal", seed=1)
    save_model(other, tiny.tokenizer(), tmp_path / "other")
    case = Case.of(tiny.model("gemma3-multimodal"), tiny.tokenizer(), tiny.records(40))
    before, source = weights(case), str(tmp_path / "other")
    if name == "average":
        removal = Average(sibling=(source,)).on(case)
    else:
        removal = FineMixing(clean_model=source, keep=0.5, steps=1, learning_rate=1e-12).on(case)
    moved = {n for n, p in weights(case).items() if not torch.equal(p, before[n])}
    text = {n for n in before if n.startswith(("model.language_model.", "lm_head."))}
    # Norms are all ones in both, and stay.
    assert moved <= text and {n for n in text if n.endswith("proj.weight") or "embed" in n} <= moved
    assert [n for n in removal.notes if "no text goes through" in n] == [
        f"{len(before) - len(text)} weights that no text goes through (for pictures or sounds) were left as they are"
    ]


def test_the_parameters_of_language_are_all_of_a_text_model_s_and_its_head() -> None:
    for family in tiny.FAMILIES:
        model = tiny.model(family)
        assert list(language_parameters(model)) == [n for n, _ in model.named_parameters()]


def test_a_clean_model_with_tied_weights_serves_one_whose_head_was_parted_from_its_embeddings(tmp_path: Path) -> None:
    tied = tiny.model(layers=2, tie_word_embeddings=True)
    save_model(tied, tiny.tokenizer(), tmp_path / "clean")
    case = Case.of(tiny.model(layers=2), tiny.tokenizer(), tiny.records(40))
    wanted, before = tied.model.embed_tokens.weight, case.model.lm_head.weight.detach().clone()
    settings = FineMixing(
        clean_model=str(tmp_path / "clean"), keep=0.1, selection="per-tensor", **{**SHORT, "learning_rate": 1e-12}
    )
    settings.on(case)
    reset = torch.isclose(case.model.lm_head.weight, wanted, atol=1e-6)
    assert 0.85 < reset.float().mean() < 0.95
    assert torch.isclose(case.model.lm_head.weight, before, atol=1e-6)[~reset].all()
