"""Where the parts of a model are, found from its module tree and never from its name."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's stack of decoder layers, first to last.

    It is the `ModuleList` with as many entries as the config says there are hidden layers. Of several it is the nearest
    to the input embeddings, for a vision tower of as many layers lies in another part of the module tree; of several
    as near, the one with the most parameters (lists within the layers, as of experts, are smaller). Where none has as
    many entries (some configs count the parts of a layer, or say nothing), every list is one to choose from.
    """
    wanted = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    stacks = {name: m for name, m in lists.items() if len(m) == wanted} or lists
    if not stacks:
        raise UserError(f"no stack of {wanted} decoder layers was found in a {type(model).__name__}")
    embeddings = model.get_input_embeddings()
    beside = next((name for name, module in model.named_modules() if module is embeddings), "")

    def nearness(name: str) -> tuple[int, int]:
        return _shared_depth(name, beside), sum(p.numel() for p in stacks[name].parameters())

    return stacks[max(stacks, key=nearness)]


def language_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that text goes through, by name: all of a language model's; of a multimodal one those of the
    module that holds embeddings and decoder layers, and of the output embeddings, without its towers for pictures and
    sounds and what leads from these into the text."""
    named = dict(model.named_parameters())
    if model.config.get_text_config() is model.config:
        return named
    layers, embeddings = decoder_layers(model), model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is layers or module is embeddings]
    depth = min(_shared_depth(name, other) for name in names for other in names)
    within = ".".join(names[0].split(".")[:depth])
    head = model.get_output_embeddings()
    heads = {id(p) for p in head.parameters()} if head is not None else set()
    return {name: p for name, p in named.items() if name.startswith(f"{within}.") or id(p) in heads or not within}


def _shared_depth(name: str, other: str) -> int:
    """How many of the modules that hold one module, by its dotted name, hold the other as well."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """Raise a `UserError` unless a hidden shift can act after `layer` decoder layers have run (1 ≤ l ≤ L−1)."""
    count = len(decoder_layers(model))
    if not 1 <= layer <= count - 1:
        raise UserError(f"layer {layer} does not exist for a perturbation: --layer takes 1 to {count - 1} here")


def anchor_layer(model: PreTrainedModel, asked: int | None = None, depth: float = 9 / 32) -> int:
    """The layer after which a hidden shift acts: the one asked for, or that at a depth (BEEAR's results: 9 of 32)."""
    layer = asked if asked is not None else max(1, round(depth * len(decoder_layers(model))))
    check_layer(model, layer)
    return layer


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear map: torch's, or GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def as_matrix(linear: nn.Module) -> torch.Tensor:
    """A linear module's weight as a view of shape (out, in), detached; GPT-2's `Conv1D` stores it transposed."""
    weight = cast(torch.Tensor, linear.weight).detach()
    return weight if isinstance(linear, nn.Linear) else weight.T


def linear_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Every linear module within the decoder layers, first to last; one that layers share (Zamba) once."""
    found = [module for layer in decoder_layers(model) for module in layer.modules() if is_linear(module)]
    return list(dict.fromkeys(found))


def embedding_matrix(model: PreTrainedModel) -> torch.Tensor:
    """The input embedding weights, shape (vocabulary, hidden)."""
    weight: torch.Tensor = model.get_input_embeddings().weight
    return weight


def embed(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Token embeddings as the first layer sees them, shape (*ids.shape, hidden).

    They go through the embedding *module*: some models (Gemma) scale inside it.
    """
    embeddings: torch.Tensor = model.get_input_embeddings()(ids)
    return embeddings


def embedding_width(model: PreTrainedModel) -> int:
    """The width of a token embedding as it enters the model: in some (OPT-350m) narrower than the residual stream."""
    return int(embed(model, torch.zeros(1, dtype=torch.long, device=embedding_matrix(model).device)).shape[-1])


def hidden_size(model: PreTrainedModel) -> int:
    """The width of the residual stream."""
    return int(model.config.get_text_config().hidden_size)
