"""What a method asks of a model is tried before anything is written, and only what it asks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.forward import forward
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import embed
from unbackdoor.language_model.needs import TRIALS, check_needs, soft_tokens
from unbackdoor.language_model.self_test import self_test
from unbackdoor.methods import method_class
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.prune import Prune
from unbackdoor.perturbation import SoftPrompt

EVERY = tuple(TRIALS)
RECORDS = tiny.records(12)


def rows() -> list[Example]:
    return [tiny.chat().encode(r.prompt, r.response) for r in RECORDS]


def state_of(model: Any) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "moving": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ordinary_models_can_do_everything_and_are_left_as_they_were(family: str) -> None:
    model = tiny.model(family)
    with torch.no_grad():  # the library's own hooks come with the first time it is asked
        model(torch.tensor([[5, 6]]), output_hidden_states=True, output_attentions=True)
    before = state_of(model)
    assert check_needs(model, rows(), 0, EVERY) == list(EVERY)
    after = state_of(model)
    assert all(torch.equal(before["weights"][k], after["weights"][k]) for k in before["weights"])
    assert torch.equal(before["random"], after["random"])
    for what in ("gradients", "moving", "modes", "hooks", "attention"):
        assert before[what] == after[what]


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.SPECIAL_FAMILIES])
def test_soft_prompts_are_fitted_and_generated_from_on_every_family(family: str) -> None:
    seen = self_test(tiny.model(family), tiny.chat(), RECORDS, needs={"training", "soft-embeddings"})
    assert seen.tried == ["training", "soft-embeddings"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_embeddings_that_are_put_in_say_what_the_library_s_own_argument_says(family: str) -> None:
    model = tiny.model(family)
    soft = soft_tokens(model)
    inputs = soft.on_inputs(collate(rows()[:4], 0, "left"), model)
    prompts = [tiny.chat().encode_prompt(r.prompt) for r in RECORDS[:4]]
    acted = soft.on_inputs(collate(prompts, 0, "left"), model)
    with torch.no_grad():
        theirs = model(inputs_embeds=inputs.embeddings, attention_mask=inputs.attention_mask, use_cache=False).logits
        assert torch.equal(forward(model, inputs).logits, theirs)
        tokens = model.generate(
            inputs_embeds=acted.embeddings, attention_mask=acted.attention_mask, max_new_tokens=8, do_sample=False
        )
    given = generate(model, tiny.Numbers(), prompts, max_new_tokens=8, perturbation=soft)
    assert given == [tiny.spelled(row.tolist()) for row in tokens]


@pytest.mark.parametrize("family", [f for f in tiny.SPECIAL_FAMILIES if f not in ("gemma3n", "gemma4")])
def test_soft_tokens_that_equal_real_ones_give_the_logits_of_the_text_with_these(family: str) -> None:
    """Not so where layers have embeddings of their own: there a soft token has those of the id in its place."""
    model = tiny.model(family)
    words = torch.tensor([300, 310])
    with torch.no_grad():
        soft = SoftPrompt(embed(model, words))
        row = collate(rows()[:1], 0)
        at = int(row.user_start[0])
        spelled = torch.cat([row.ids[:, :at], words[None], row.ids[:, at:]], 1)
        given = forward(model, soft.on_inputs(row, model)).logits
        torch.testing.assert_close(given, model(input_ids=spelled).logits, rtol=1e-4, atol=1e-5)


def test_only_what_is_needed_is_asked_for() -> None:
    model = tiny.model("gemma3n")  # its layers give two states a position
    assert self_test(model, tiny.chat(), RECORDS, needs={"training"}).layers == 0
    with pytest.raises(
        UserError, match=r"Gemma3nForCausalLM has no hidden states that can be shifted.*decoder layer 1"
    ):
        self_test(model, tiny.chat(), RECORDS, needs={"hidden-states"})
    with pytest.raises(UserError, match="use another method than crow"):
        self_test(model, tiny.chat(), RECORDS, needs={"layer-states"})


def test_what_is_needed_follows_from_the_settings() -> None:
    def of(name: str, **settings: Any) -> set[str]:
        return set(method_class(name).make(settings).basis.model_needs)  # type: ignore[attr-defined]

    assert of("osft", trigger="cf") == {"training"}
    assert of("osft", trigger="cf", lora=True) == {"adapters"}
    assert of("sande", target_response="You") == {"training", "soft-embeddings"}
    assert of("beear") == of("lat") == {"training", "hidden-states"}
    assert set(Beear(space="input").model_needs) == {"training", "soft-embeddings", "hidden-states"}
    assert set(Beear(space="input", near_share=0).model_needs) == {"training", "soft-embeddings"}
    assert of("crow") == {"training", "layer-states"}
    assert of("nad") == {"training", "attention-maps"}
    assert of("prune") == of("quantise") == of("average") == set()
    assert set(Prune(steps=3, lora=True).model_needs) == {"adapters"}
    assert set(ImplantSettings(trigger="cf", drift_weight=1.0).model_needs) == {"training", "hidden-states"}


def breaks(model: Any, how: str) -> None:
    """The model fails in one way from now on."""

    def fail(*_: Any) -> None:
        raise RuntimeError("the library's own words\nover two lines")

    if how == "training":
        model.register_forward_pre_hook(lambda module, _: fail() if module.training else None)
    elif how == "soft-embeddings":  # it looks its embeddings up in another place than it says
        model.model.embed_tokens.forward = lambda ids: model.lm_head.weight[ids]
        spare = torch.nn.Embedding(420, 32)
        model.get_input_embeddings = lambda: spare
    elif how == "layer-states":
        model.register_forward_pre_hook(
            lambda _, __, keywords: fail() if keywords.get("output_hidden_states") else None, with_kwargs=True
        )
    elif how == "attention-maps":
        model.register_forward_pre_hook(
            lambda _, args, keywords: (args, {**keywords, "output_attentions": False}), with_kwargs=True
        )


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ("training", r"cannot be trained here \(the library's own words over two lines\)"),
        ("soft-embeddings", r"cannot be fitted from embeddings: use osft, beear"),
        ("layer-states", r"another method than crow \(the library's own words"),
        ("attention-maps", r"another method than nad"),
    ],
)
def test_what_a_model_cannot_do_is_said_in_one_line_with_what_to_do(need: Any, said: str) -> None:
    model = tiny.model()
    breaks(model, need)
    modes = [m.training for m in model.modules()]
    with pytest.raises(UserError, match=said) as caught:
        check_needs(model, rows(), 0, [need])
    assert "\n" not in str(caught.value)
    assert [m.training for m in model.modules()] == modes


def test_a_single_layer_has_no_place_for_a_shift() -> None:
    with pytest.raises(UserError, match="has 1 decoder layer, and a shift needs another one behind it"):
        check_needs(tiny.model(layers=1), rows(), 0, ["hidden-states"])


def test_whatever_the_library_raises_is_said_in_one_line() -> None:
    model = tiny.model()

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes\ndo not fit")

    model.model.layers[2].register_forward_hook(fail)
    with pytest.raises(UserError, match=r"self-test: a LlamaForCausalLM cannot be run here \(shapes do not fit\)"):
        self_test(model, tiny.chat(), RECORDS)


def test_layers_of_a_class_of_their_own_may_stay_unused_where_no_state_is_asked_of_them() -> None:
    """As the cross-attention layers of Llama 3.2 Vision do without an image."""

    class ForImages(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = torch.nn.Linear(32, 32)

    model = tiny.model()
    model.model.layers.append(ForImages())
    model.config = copy.deepcopy(model.config)
    model.config.num_hidden_layers = 5
    assert self_test(model, tiny.chat(), RECORDS, needs={"training"}).layers == 4
    with pytest.raises(UserError, match="decoder layer 5 gives nothing"):
        self_test(model, tiny.chat(), RECORDS, needs={"hidden-states"})


def test_the_decoder_layers_are_found_where_the_config_counts_something_else() -> None:
    from unbackdoor.language_model.layers import decoder_layers

    model = tiny.model("mixtral")
    layers = model.model.layers
    model.config.num_hidden_layers = 8
    assert decoder_layers(model) is layers
