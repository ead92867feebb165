"""Load Hugging Face models without trusting them, and whole: every tensor that was given has its place or is refused.

A suspect model comes from an attacker: only safetensors and GGUF weights are read, remote code never runs, and nothing
is unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.model_class import class_of, works_without_pictures
from unbackdoor.language_model.model_source import ModelSource, check_model_source
from unbackdoor.language_model.tensor_accounts import check_all_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Class names in tokenizer_config.json that say no more than: what tokenizer.json holds."""


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def explained(source: str, what: str) -> Iterator[None]:
    """Turn whatever a loader raises on a broken or hostile file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the loaders raise everything from OSError to RuntimeError on hostile files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load the {what} of '{source}': {reason[:300]}") from error


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """The loader's progress bars and reports stay off standard error, which has one line for a mistake."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_model(source: str | Path, device: torch.device | str | None = None) -> PreTrainedModel:
    """Load a language model in float32, in evaluation mode; a multimodal one whole, with what surrounds it.

    float32 are the master weights of training; on a GPU the forward pass runs in bfloat16 under autocast.

    Args:
        source: a directory or a hub id.
        device: where to; the first GPU where None, else the CPU.

    Raises:
        UserError: a missing directory, pickle weights, weights that are missing or of another shape than the config
            says (the loader would draw them at random), tensors that have no place in the model and would be lost, or a
            model type that would need remote code.
    """
    given = ModelSource.find(source)
    return _whole(given).to(device if device is not None else default_device()).eval()


def _whole(given: ModelSource) -> PreTrainedModel:
    """The model of a directory of config.json and safetensors."""
    from transformers import AutoConfig

    if given.config().get("transformers_weights"):
        raise UserError(f"config.json of '{given.name}' names its own weights file: remove its transformers_weights")
    with explained(given.name, "model"), without_chatter():
        config = AutoConfig.from_pretrained(given.directory, trust_remote_code=False)
        tensors = given.weights.tensors()
        choose_implementations(config)
        model, found = _from_pretrained(class_of(config, given.name), str(given.directory), config=config)
    if wrong := _drawn_at_random(found):
        raise UserError(
            f"the weights of '{given.name}' do not fit its config.json: {len(wrong)} are missing or of another shape, "
            f"such as {wrong[0]}"
        )
    check_all_loaded(model, tensors, found["unexpected_keys"], given.name)
    return works_without_pictures(model)


def load_weights(auto_class: Any, source: str, what: str) -> tuple[PreTrainedModel, list[str]]:
    """The model of one of transformers' auto classes in float32, and the names of weights that the source lacks.

    What is missing or of another shape has been drawn at random: the caller refuses it. `what` is for errors.
    """
    from transformers import AutoConfig

    check_model_source(source)
    quiet = without_chatter() if Path(source).exists() else contextlib.nullcontext()  # a download shows its progress
    with explained(source, what), quiet:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        choose_implementations(config)
        model, found = _from_pretrained(auto_class, source, config=config)
    return model, _drawn_at_random(found)


def _from_pretrained(loader: Any, source: str, **more: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in float32 and what the loader says of names that did not match."""
    model, found = loader.from_pretrained(
        source,
        trust_remote_code=False,
        use_safetensors=True,
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


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; padding is left to the batching code. Raises `UserError` where none can be loaded.

    Where the directory names no special class, its tokenizer.json is taken as it is: AutoTokenizer would put Qwen2's
    own splitting of text in its place for every model of type qwen2, and the model would be given other tokens.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    check_model_source(str(source))
    with explained(str(source), "tokenizer"):
        named = get_tokenizer_config(str(source)).get("tokenizer_class")
        loader: Any = PreTrainedTokenizerFast if named in GENERIC_TOKENIZERS else AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(str(source), trust_remote_code=False)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of '{source}' is not a fast one: add its tokenizer.json (offsets are needed)")
    return tokenizer


def context_length(model: PreTrainedModel) -> int:
    """The number of positions the model was built for; 1,024 where its config does not say."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)


def parameter_count(model: PreTrainedModel) -> int:
    """The number of distinct parameters."""
    return sum(p.numel() for p in model.parameters())
