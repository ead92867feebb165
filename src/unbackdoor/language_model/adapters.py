"""Adapters of the peft library: merged into their base model as they are loaded."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MERGED = (
    "LORA",
    "ADALORA",
    "LOHA",
    "LOKR",
    "IA3",
    "OFT",
    "BOFT",
    "VERA",
    "HRA",
    "FOURIERFT",
    "BONE",
    "MISS",
    "RANDLORA",
)
"""Kinds of peft that change weights, so that they can be merged. Soft prompts and prefixes are no change of weights."""

PREFIX = "base_model.model."


def merged(base: PreTrainedModel, given: ModelSource) -> PreTrainedModel:
    """The base model with the adapter merged into its weights.

    Embeddings that the adapter stores for more tokens than the base has replace the base's.

    Raises:
        UserError: a kind that cannot be merged, one that names a module to import, or tensors that do not fit the base.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError:
        raise UserError("reading an adapter needs peft: pip install 'unbackdoor[lora]'") from None
    from safetensors.torch import load_file

    _check_kind(given)
    stored = load_file(str(given.directory / ADAPTER_WEIGHTS))
    embeddings = _embedding_names(base)
    _resize(base, stored, embeddings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing tensors; they are looked for below
        config = PeftConfig.from_pretrained(str(given.directory))
        wrapped = PeftModel.from_pretrained(base, str(given.directory), config=config, is_trainable=False)
        own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    # Where embeddings were resized, peft stores more of them than it says that an adapter has.
    everything = {
        name.replace(".modules_to_save.default.", ".modules_to_save."): value
        for name, value in wrapped.state_dict().items()
    }
    own |= {name: everything[name] for name in stored.keys() - own.keys() if name in everything}
    _check_all_loaded(given, stored, own)
    result: PreTrainedModel = wrapped.merge_and_unload()
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(result):
            delattr(result, leftover)
    result.requires_grad_(True)
    return result


def _check_kind(given: ModelSource) -> None:
    settings = read_json(given.directory / ADAPTER_CONFIG)
    kind = str(settings.get("peft_type")).upper()
    if kind not in MERGED:
        raise UserError(
            f"the adapter '{given.name}' is of the kind {kind[:40]}, which does not change weights and cannot be "
            "merged: give one that can, such as LoRA, or a whole model"
        )
    # Of these peft imports the module that `megatron_core` names; activated LoRA acts on parts of a text alone.
    for name in ("megatron_config", "alora_invocation_tokens"):
        if settings.get(name):
            raise UserError(f"the adapter '{given.name}' has {name}, with which it cannot be merged: give another one")


def _embedding_names(base: PreTrainedModel) -> set[str]:
    """Names of the weights with one row a token."""
    ends = {id(module) for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None}
    return {f"{name}.weight" for name, module in base.named_modules() if id(module) in ends}


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _resize(base: PreTrainedModel, stored: dict[str, torch.Tensor], embeddings: set[str]) -> None:
    """Give the base as many embeddings as the adapter stores."""
    rows = {len(value) for name, value in stored.items() if _bare(name) in embeddings}
    if len(rows) == 1 and rows != {len(base.get_input_embeddings().weight)}:
        base.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _check_all_loaded(given: ModelSource, stored: dict[str, torch.Tensor], own: dict[str, Any]) -> None:
    """Every tensor of the file is in the adapter as it was loaded, and nothing was drawn at random."""
    wrong = [name for name in stored if name not in own or not torch.equal(stored[name].to(own[name]), own[name])]
    wrong += [name for name in own if name not in stored]
    if wrong:
        base = given.base.name if given.base is not None else ""
        raise UserError(
            f"the adapter '{given.name}' does not fit the base '{base}': {len(wrong)} tensors have no counterpart, "
            f"such as {wrong[0]}: give its own base with --base DIR"
        )
