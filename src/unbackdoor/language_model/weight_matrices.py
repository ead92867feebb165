"""The decoder's weights as linear maps: those of linear modules, and those of experts that are kept in one tensor.

transformers 5 keeps the experts of a mixture as parameters of shape (experts, …, …), which no linear module shows. They
are most of such a model, so whatever works on linear maps has to see them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from unbackdoor.language_model.layers import as_matrix, decoder_layers, hidden_size, linear_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_OF_THEM = 0.995
"""From this share of the decoder's weights on, nothing is said of the rest (routers, convolutions)."""


@dataclass(frozen=True, eq=False)
class WeightMatrices:
    """One weight of the decoder: a linear module's matrix, or the same matrix of all experts."""

    owner: nn.Module | nn.Parameter
    """The linear module, or the experts' parameter."""
    parameter: nn.Parameter
    matrices: torch.Tensor
    """A detached view of shape (out, in), or (experts, out, in)."""


def weight_matrices(model: PreTrainedModel) -> list[WeightMatrices]:
    """Every weight within the decoder layers that is a linear map: linear modules first to last, then experts."""
    linear = [WeightMatrices(m, cast(nn.Parameter, m.weight), as_matrix(m)) for m in linear_modules(model)]
    experts = [
        WeightMatrices(p, p, p.detach().transpose(1, 2) if transposed else p.detach())
        for p, transposed in expert_parameters(model)
    ]
    return [*linear, *experts]


def expert_parameters(model: PreTrainedModel) -> list[tuple[nn.Parameter, bool]]:
    """The 3-D weights of experts in the decoder layers, and whether each is stored as (experts, in, out).

    Only its class says that a module holds experts: a recurrent layer's block-diagonal gates have the same shape.
    """
    found: dict[int, tuple[nn.Parameter, bool]] = {}
    for layer in decoder_layers(model):
        for module in layer.modules():
            if "Experts" not in type(module).__name__:
                continue
            weights = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim == 3 and min(p.shape[1:]) > 1}
            transposed = _is_transposed(module, weights, hidden_size(model))
            found |= {id(p): (p, transposed) for p in weights.values()}
    return list(found.values())


def _is_transposed(module: nn.Module, weights: dict[str, nn.Parameter], width: int) -> bool:
    """Whether experts are stored as (experts, in, out): what the library says, else what the shapes say."""
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    out_and_in = getattr(module, "output_size", None), getattr(module, "input_size", None)
    for name, weight in weights.items():
        shape = tuple(weight.shape[1:])
        if None not in out_and_in and shape[0] != shape[1]:
            return shape != out_and_in
        if (shape[0] == width) != (shape[1] == width):  # what leads down to the residual stream has its width as output
            return (shape[0] == width) != ("down" in name)
    return False


def reach(model: PreTrainedModel, reached: Sequence[torch.Tensor]) -> tuple[float, list[str]]:
    """The share of the decoder layers' weights (of two or more axes) among these, and the names of those left out."""
    ids = {id(weight) for weight in reached}
    names: set[str] = set()
    total = touched = 0
    seen: set[int] = set()
    for layer in decoder_layers(model):
        for name, weight in layer.named_parameters():
            if weight.ndim < 2 or id(weight) in seen or "lora_" in name or name.endswith("bias"):
                continue
            seen.add(id(weight))
            total += weight.numel()
            if id(weight) in ids:
                touched += weight.numel()
            else:
                names.add(re.sub(r"\.\d+(?=\.)", "", name))
    return (touched / total if total else 1.0), sorted(names)


def reach_note(model: PreTrainedModel, what: str, reached: Sequence[torch.Tensor]) -> list[str]:
    """One line where a method leaves a share of the decoder's weights as it is; none where it reaches them all."""
    share, left = reach(model, reached)
    if share >= ALL_OF_THEM:
        return []
    kinds = "experts, " if any("expert" in name.lower() for name in left) else ""
    shown = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
    return [f"{what} reached {share:.0%} of the decoder layers' weights; not: {kinds}{shown}"]
