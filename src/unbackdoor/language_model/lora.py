"""LoRA adapters on a model's decoder."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.layers import is_linear
from unbackdoor.language_model.weight_matrices import expert_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES_OF_EXPERTS = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
"""What the parts of an expert were called while each was a module of its own."""


def attach(model: PreTrainedModel, rank: int) -> Any:
    """The model with adapters of this rank on every linear layer and every expert's matrix, as peft wraps it.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora needs peft: pip install 'unbackdoor[lora]'") from None
    modules, parameters = _targets(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=modules,
        exclude_modules=_not_plain(model) or None,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names within transformers that peft still uses
        return get_peft_model(model, config)


def _targets(model: PreTrainedModel) -> tuple[str | list[str], list[str]]:
    """The modules and the parameters that get adapters, by name.

    Where experts are kept in one tensor, peft reads some names of modules as those of experts that the tensor has
    taken the place of, and leaves a dense layer's own of that name out: these are given as parameters.
    """
    experts = {id(p) for p, _ in expert_parameters(model)}
    if not experts:
        return "all-linear", []
    head = model.get_output_embeddings()
    left_out = set(_not_plain(model))
    plain = [n for n, m in model.named_modules() if is_linear(m) and m is not head and n not in left_out]
    read_as_experts = [name for name in plain if name.rpartition(".")[2] in NAMES_OF_EXPERTS]
    parameters = [name for name, p in model.named_parameters() if id(p) in experts]
    modules = [name for name in plain if name not in set(read_as_experts)]
    return modules, [*parameters, *(f"{name}.weight" for name in read_as_experts)]


def _not_plain(model: PreTrainedModel) -> list[str]:
    """Linear modules whose output an adapter could not be added to: those that give back more than it (Llama 4's
    router), and a state-space mixer's last one, whose weight its fast kernels take without calling it."""
    mixers = [name for name, module in model.named_modules() if any(n == "conv1d" for n, _ in module.named_children())]
    last = [f"{name}.out_proj" for name in mixers]
    routers = [n for n, m in model.named_modules() if is_linear(m) and "Router" in type(m).__name__]
    return [name for name in dict.fromkeys([*last, *routers]) if name in dict(model.named_modules())]


def adapted_weights(wrapped: Any) -> list[torch.Tensor]:
    """The weights of the model that have an adapter."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    return [m.get_param() if isinstance(m, ParamWrapper) else m.get_base_layer().weight for m in layers]
