"""What of a config.json and a tokenizer_config.json is believed: data about the model, never where else to look.

transformers sets whatever a config.json holds as attributes of its config object, and passes what a
tokenizer_config.json holds to the tokenizer's constructor. Some of these names are heeded elsewhere: they lead to code,
to other files, to a hub, or change what a call returns. They are taken out before the loader sees them, on every level.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from unbackdoor.errors import UserError

CODE = (
    "auto_map",
    "custom_pipelines",
    "custom_generate",
    "trust_remote_code",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "use_kernels",
    "kernel_config",
    "fusion_config",
    "use_flash_attn",
    "use_flash_attention_2",
)
"""Names that lead to code: of the directory, of a kernel that is fetched from a hub, of a package."""
ELSEWHERE = (
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "revision",
    "subfolder",
    "gguf_file",
    "extra_files",
    "extra_config_files",
    "distributed_config",
    "device_map",
    "tp_plan",
    "ep_plan",
    "base_model_tp_plan",
    "base_model_pp_plan",
    "base_model_ep_plan",
    "base_model_fsdp_plan",
    "adapter_kwargs",
    "cache_dir",
    "proxies",
    "token",
    "local_files_only",
    "use_pretrained_backbone",
    "use_timm_backbone",
)
"""Names that lead to other files, machines or addresses."""
RETURNED = (
    "return_dict",
    "use_return_dict",
    "output_attentions",
    "_output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "torchscript",
    "pruned_heads",
)
"""Names that change what a forward pass returns: it is ours to ask for."""
PROMPTED = ("prefix", "task_specific_params")
"""Names with which transformers' pipelines write a text before every prompt, or choose other settings of generation."""
OTHER_FILES = ("transformers_weights", "configuration_files")
"""Names with which a config says that the model is in other files than those of the usual names: refused."""
SILENT: Mapping[str, tuple[Any, ...]] = {
    "return_dict": (True, None),
    "use_return_dict": (True, None),
    "pruned_heads": ({}, None),
    "_name_or_path": (),
    "name_or_path": (),
    "_commit_hash": (),
    "_attn_implementation_autoset": (),
    **{f"{start}{what}_implementation": ("eager", "sdpa") for start in ("", "_") for what in ("attn", "experts")},
}
"""Values that say nothing: they are left out without a word. Empty: whatever the value is."""

TOKENIZER_ELSEWHERE = (
    "auto_map",
    "fast_tokenizer_files",
    "init_inputs",
    "tokenizer_object",
    "backend",
    "vocab",
    "merges",
    "sp_model_kwargs",
    "sp_model",
    "is_local",
    "files_loaded",
    "name_or_path",
    "_commit_hash",
    "revision",
    "subfolder",
    "gguf_file",
    "cache_dir",
    "proxies",
    "token",
    "local_files_only",
    "trust_remote_code",
    "custom_pipelines",
    "_from_auto",
    "_from_pipeline",
    "config",
    "dropout",
)
TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type")
TOKENIZER_SILENT = ("name_or_path", "_commit_hash", "sp_model_kwargs", "is_local", "backend", "files_loaded")


def believed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without the names that are not heeded, on every level."""
    return {
        name: believed(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not _is_ignored(name)
    }


def ignored(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config.json is not heeded and says something: name → value, names of inner parts with a point."""
    return dict(_ignored(config, ""))


def _ignored(config: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if _is_ignored(name):
            silent = value in (None, False) if name not in SILENT else not SILENT[name] or value in SILENT[name]
            if not silent and value is not None:
                yield before + name, value
        elif isinstance(value, Mapping):
            yield from _ignored(value, f"{before}{name}.")


def _is_ignored(name: str) -> bool:
    return name in (*CODE, *ELSEWHERE, *RETURNED, *PROMPTED, *OTHER_FILES) or name in _methods()


@functools.cache
def _methods() -> frozenset[str]:
    """What a config object's class defines beside data: a value of that name would stand in the place of a method."""
    import dataclasses

    from transformers import PreTrainedConfig

    data = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    data |= {"num_labels", "rope_scaling", "rope_parameters", "per_layer_config", "model_type"}
    return frozenset(name for name in dir(PreTrainedConfig) if name not in data)


def check_no_other_files(config: Mapping[str, Any], source: str) -> None:
    """Raise a `UserError` where a config.json says that the model lies in other files than those that are read."""
    for name in OTHER_FILES:
        if config.get(name):
            what = "weights file" if name == "transformers_weights" else "further configs"
            raise UserError(f"config.json of '{source}' names its own {what}: remove its {name}")


def believed_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json without the names that lead elsewhere, with a length and sides that are some."""
    kept = {name: plain_tokens(value) for name, value in config.items() if not _leads_elsewhere(name)}
    length = kept.get("model_max_length")
    if isinstance(length, bool) or not isinstance(length, int | float) or not 0 < length < float("inf"):
        kept.pop("model_max_length", None)
    for name in ("padding_side", "truncation_side"):
        if kept.get(name) not in ("left", "right"):
            kept.pop(name, None)
    return kept


def plain_tokens(value: Any, depth: int = 0) -> Any:
    """The same value, in which tokens that are written as objects have the fields of a token alone.

    Of other fields the tokenizers library prints the names to the terminal, whatever characters stand in them.
    """
    if isinstance(value, list) and depth < 10:
        return [plain_tokens(item, depth + 1) for item in value]
    if not isinstance(value, Mapping) or depth >= 10:
        return value
    is_token = "content" in value or value.get("__type") == "AddedToken"
    return {name: plain_tokens(item, depth + 1) for name, item in value.items() if not is_token or name in TOKEN_FIELDS}


def ignored_in_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a tokenizer_config.json is not heeded and says something."""
    kept = believed_tokenizer(config)
    return {
        name: value
        for name, value in config.items()
        if name not in kept and name not in TOKENIZER_SILENT and value not in (None, False)
    }


def _leads_elsewhere(name: str) -> bool:
    return name in TOKENIZER_ELSEWHERE or name.endswith(("_file", "_files", "_path", "_dir"))
