"""Adapters of the peft library: merged into their base model as they are loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.adapter_patterns import check_patterns
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.model_class import settle_ties
from unbackdoor.language_model.files.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from unbackdoor.language_model.files.readable_copy import isolated_adapter
from unbackdoor.language_model.files.weight_files import check_file

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

ELSEWHERE = (
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "runtime_config",
    "peft_version",
)
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

    settings = _check_kind(given)
    check_patterns(settings, (name for name, _ in base.named_modules()), given.name)
    check_file(given.directory / ADAPTER_WEIGHTS)
    stored = load_file(str(given.directory / ADAPTER_WEIGHTS))
    _check_sizes(given, settings, stored)
    embeddings = _embedding_names(base)
    _resize(base, stored, embeddings)
    with warnings.catch_warnings(), isolated_adapter(given, _believed(settings)) as stage:
        warnings.simplefilter("ignore")  # of missing tensors; they are looked for below
        config = PeftConfig.from_pretrained(str(stage))
        try:
            wrapped = PeftModel.from_pretrained(base, str(stage), config=config, is_trainable=False)
        except KeyError as error:
            raise _does_not_fit(given, f"it has no {str(error.args[0])[:200]}") from error
        except RuntimeError as error:  # torch lists every tensor of another shape
            found = re.search(r"size mismatch for (?:base_model\.model\.)?(\S+):", str(error))
            raise _does_not_fit(given, f"{found[1]} has another shape there" if found else str(error)[:200]) from error
        own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    # Where embeddings were resized, peft stores more of them than it says that an adapter has.
    everything = {
        name.replace(".modules_to_save.default.", ".modules_to_save."): value
        for name, value in wrapped.state_dict().items()
    }
    own |= {name: everything[name] for name in stored.keys() - own.keys() if name in everything}
    _check_all_loaded(given, stored, own)
    _untie(base)
    result: PreTrainedModel = wrapped.merge_and_unload()
    settle_ties(result)
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(result):
            delattr(result, leftover)
    result.requires_grad_(True)
    return result


def _check_kind(given: ModelSource) -> dict[str, Any]:
    """The adapter's settings, where they describe a change of weights."""
    settings = read_json(given.directory / ADAPTER_CONFIG)
    kind = str(settings.get("peft_type")).upper()
    if kind not in MERGED:
        raise UserError(
            f"the adapter '{given.name}' is of the kind {kind[:40]}, which does not change weights and cannot be "
            "merged: give one that can, such as LoRA, or a whole model"
        )
    # Of these peft imports the module that `megatron_core` names; activated LoRA acts on parts of a text alone; layers
    # that are repeated (as often as the file likes) are another model.
    for name in ("megatron_config", "alora_invocation_tokens", "layer_replication"):
        if settings.get(name):
            raise UserError(f"the adapter '{given.name}' has {name}, with which it cannot be merged: give another one")
    return settings


def _believed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that lead elsewhere, or say how a new adapter would be begun."""
    kept = {name: value for name, value in settings.items() if name not in ELSEWHERE}
    if "init_lora_weights" in kept:
        kept["init_lora_weights"] = True
    return kept


def _check_sizes(given: ModelSource, settings: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> None:
    """No size in the settings is larger than what is stored: peft makes the adapter before it reads its weights."""
    largest = max((max(value.shape, default=1) for value in stored.values()), default=1)
    ranks = settings.get("rank_pattern")
    named = [*settings.items(), *(ranks.items() if isinstance(ranks, dict) else ())]
    for name, value in named:
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value > max(largest, 4096)
            and "alpha" not in name
        ):
            raise _does_not_fit(given, f"{name[:60]} is {value}, and its largest tensor has {largest} rows or columns")


def _embedding_names(base: PreTrainedModel) -> set[str]:
    """Names of the weights with one row a token."""
    ends = {id(module) for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None}
    return {f"{name}.weight" for name, module in base.named_modules() if id(module) in ends}


def _bare(name: str) -> str:
    """The name in the base; peft stores embeddings that it adapts and that were resized as the adapter's base layer."""
    return name.removeprefix(PREFIX).replace(".base_layer.weight", ".weight")


def _untie(wrapped: PreTrainedModel) -> None:
    """Give the head a weight of its own where it shares that of the embeddings and one of the two is adapted.

    An adapter on embeddings changes what goes in, and one on the head what comes out. Merged into a weight that both
    share, each would change both.
    """
    ends = [
        module for module in (wrapped.get_input_embeddings(), wrapped.get_output_embeddings()) if module is not None
    ]
    inner = [getattr(module, "base_layer", module) for module in ends]
    if len(inner) < 2 or not any(hasattr(module, "base_layer") for module in ends):
        return
    if getattr(inner[0], "weight", None) is getattr(inner[1], "weight", ()):
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)


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
        raise _does_not_fit(given, f"{len(wrong)} tensors have no counterpart, such as {wrong[0]}")


def _does_not_fit(given: ModelSource, reason: str) -> UserError:
    base = given.base.name if given.base is not None else ""
    return UserError(
        f"the adapter '{given.name}' does not fit the base '{base}': {reason}: give its own base with --base DIR"
    )
