"""Load Hugging Face models without trusting them, and whole: every tensor that was given has its place or is refused.

A suspect model comes from an attacker: only safetensors and GGUF weights are read, remote code never runs, and nothing
is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.files import config_keys, gguf_files
from unbackdoor.language_model.files.adapters import merged
from unbackdoor.language_model.files.config_keys import check_no_other_files
from unbackdoor.language_model.files.loader_errors import explained, rope_explained, without_chatter
from unbackdoor.language_model.files.model_class import class_of, settle_ties, works_without_pictures
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.quantised_weights import (
    ask_for_dense_weights,
    forget,
    is_part_of_a_weight,
    method_of,
)
from unbackdoor.language_model.files.readable_copy import isolated_gguf, isolated_model
from unbackdoor.language_model.files.size_check import bounded, check_sizes
from unbackdoor.language_model.files.tensor_accounts import check_all_loaded
from unbackdoor.language_model.files.weight_files import StoredTensor
from unbackdoor.language_model.tokenizer_loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "choose_implementations",
    "context_length",
    "default_device",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "parameter_count",
    "without_chatter",
]


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    source: str | Path, device: torch.device | str | None = None, base: str | Path | None = None
) -> PreTrainedModel:
    """Load a language model in float32, in evaluation mode; a multimodal one whole, with what surrounds it.

    float32 are the master weights of training; on a GPU the forward pass runs in bfloat16 under autocast.

    Args:
        source: a directory, a GGUF file or `hf:owner/name`.
        device: where to; the first GPU where None, else the CPU.
        base: where `source` is an adapter, the model that it was trained on; the one that it names where None.

    Raises:
        UserError: a missing directory, pickle weights, weights that are missing or of another shape than the config
            says (the loader would draw them at random), tensors that have no place in the model and would be lost, or a
            model type that would need remote code.
    """
    model = _loaded(ModelSource.find(source, base))
    return model.to(device if device is not None else default_device()).eval()


def _loaded(given: ModelSource) -> PreTrainedModel:
    """The model in float32, in whichever form it was given."""
    if given.base is not None:
        base = _loaded(given.base)
        with explained(given.name, "adapter"), without_chatter():
            return merged(base, given)
    return _of_gguf(given) if given.form == "gguf" else _whole(given)


def _whole(given: ModelSource) -> PreTrainedModel:
    """The model of a directory of config.json and safetensors."""
    from transformers import AutoConfig

    check_no_other_files(given.config(), given.name)
    with rope_explained(given), explained(given.name, "model"), without_chatter():
        tensors = given.weights.tensors()
        check_sizes(config_keys.believed(given.config()), tensors, given.name)
        with isolated_model(given, tensors) as stage, _bounded(given, tensors):
            config = AutoConfig.from_pretrained(stage, trust_remote_code=False, local_files_only=True)
            choose_implementations(config)
            ask_for_dense_weights(config, given.name)
            model, found = _from_pretrained(class_of(config, given.name), str(stage), config=config)
        model.config._name_or_path = given.name
    _check_nothing_is_random(found, given.name)
    unexpected = found["unexpected_keys"]
    if method_of(given.config()) is not None:
        unexpected = [name for name in unexpected if not is_part_of_a_weight(name)]
        forget(model)
    check_all_loaded(model, tensors, unexpected, given.name)
    return works_without_pictures(settle_ties(model))


def _bounded(given: ModelSource, tensors: Mapping[str, StoredTensor]) -> AbstractContextManager[None]:
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return bounded(len(tensors), elements, given.name, packed=method_of(given.config()) is not None)


def _of_gguf(given: ModelSource) -> PreTrainedModel:
    """The model of a GGUF file, with dense weights."""
    from transformers import AutoModelForCausalLM

    assert given.gguf is not None
    size = given.gguf.stat().st_size
    with (
        explained(given.name, "GGUF file"),
        without_chatter(),
        isolated_gguf(given) as stage,
        bounded(size // gguf_files.LEAST_BYTES, size * gguf_files.MOST_WEIGHTS, given.name),
    ):
        model, found = _from_pretrained(AutoModelForCausalLM, str(stage), **gguf_files.load_arguments(given))
    model.config._name_or_path = given.name
    _check_nothing_is_random(found, given.name)
    check_all_loaded(model, {}, found["unexpected_keys"], given.name)
    return forget(model)


def _check_nothing_is_random(found: dict[str, Any], source: str) -> None:
    if wrong := _drawn_at_random(found):
        raise UserError(
            f"the weights of '{source}' do not fit its config.json: {len(wrong)} are missing or of another shape, such "
            f"as {wrong[0]}: give a complete directory and a config.json that fits it{_tied_remedy(wrong)}"
        )


def _tied_remedy(wrong: Sequence[str]) -> str:
    """What a missing output matrix alone most often means."""
    if [name.rpartition("lm_head.")[2] for name in wrong] != ["weight"]:
        return ""
    return " (tie_word_embeddings true, where the output embeddings are the input's)"


def load_weights(auto_class: Any, source: str, what: str) -> tuple[PreTrainedModel, list[str]]:
    """The model of one of transformers' auto classes in float32, and the names of weights that the source lacks.

    What is missing or of another shape has been drawn at random: the caller refuses it. `what` is for errors.

    Raises:
        UserError: as of `load_model`, also where tensors have no place in the model.
    """
    from transformers import AutoConfig

    given = ModelSource.find(source)
    if given.form != "whole":
        raise UserError(f"the {what} '{source}' is no directory of config.json and safetensors: give one that is")
    check_no_other_files(given.config(), given.name)
    with explained(source, what), without_chatter():
        tensors = given.weights.tensors()
        check_sizes(config_keys.believed(given.config()), tensors, given.name)
        with isolated_model(given, tensors) as stage, _bounded(given, tensors):
            config = AutoConfig.from_pretrained(stage, trust_remote_code=False, local_files_only=True)
            choose_implementations(config)
            model, found = _from_pretrained(auto_class, str(stage), config=config)
    model.config._name_or_path = given.name
    if not (wrong := _drawn_at_random(found)):
        check_all_loaded(model, tensors, found["unexpected_keys"], given.name)
    return model, wrong


def _from_pretrained(loader: Any, source: str, **more: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in float32 and what the loader says of names that did not match."""
    model, found = loader.from_pretrained(
        source,
        trust_remote_code=False,
        local_files_only=True,
        use_kernels=False,
        weights_only=True,
        use_safetensors=None if "gguf_file" in more else True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **more,
    )
    return model, found


def _drawn_at_random(found: dict[str, Any]) -> list[str]:
    return sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])


def choose_implementations(config: PreTrainedConfig) -> None:
    """Forget which code a config wants its attention and its experts to be computed by: the library then takes its own
    (scaled dot products, else the plain formulation).

    A config names what its author had installed (FlashAttention), or a kernel that would be fetched from a hub and run.
    The plain way to give back what a forward pass found is asked for as well, and a padding id that exists.
    """
    config._attn_implementation = None
    config._experts_implementation = None
    if not config.return_dict:
        config.return_dict = True
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if rows is not None and not 0 <= (getattr(text, "pad_token_id", None) or 0) < rows:
        text.pad_token_id = None  # of an id without an embedding the embeddings could not even be made


def context_length(model: PreTrainedModel) -> int:
    """The number of positions the model was built for; 1,024 where its config does not say (XLNet's says −1)."""
    config = model.config.get_text_config()
    said = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(count) for count in said if count and count > 0), 1024)


def parameter_count(model: PreTrainedModel) -> int:
    """The number of distinct parameters."""
    return sum(p.numel() for p in model.parameters())
