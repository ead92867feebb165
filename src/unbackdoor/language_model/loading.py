"""Load and save Hugging Face models without trusting them.

A suspect model comes from an attacker: only safetensors weights are read, remote code never runs, and nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Class names in tokenizer_config.json that say no more than: what tokenizer.json holds."""


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_model_source(source: str) -> None:
    """Raise a `UserError` unless `source` can be a model that is safe to load.

    A path must be a directory with `config.json` and safetensors weights. Anything that does not exist on disk and
    looks like `owner/name` is left to the hub client.
    """
    path = Path(source)
    if not path.exists():
        if looks_like_hub_id(source):
            return
        raise UserError(f"model directory '{source}' does not exist: give a Hugging Face directory or a hub id")
    if not path.is_dir():
        raise UserError(f"model '{source}' is a file: give the directory that holds config.json and safetensors")
    if not (path / "config.json").is_file():
        if (path / "model" / "config.json").is_file():
            raise UserError(f"'{source}' is a run directory: give its model, '{path / 'model'}'")
        raise UserError(f"model directory '{source}' has no config.json: give a Hugging Face model directory")
    if (path / "adapter_config.json").exists():  # the loader would fetch the base model that this file names
        raise UserError(f"'{source}' holds an adapter, not a model: merge it into its base model first")
    if any(path.glob("*.safetensors")):
        _check_index(path)
        return
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"'{source}' has only pickle weights ({pickles[0]}), which can run code when loaded: convert them to "
            "safetensors on an isolated machine (model.save_pretrained(DIR)) and give that directory"
        )
    raise UserError(f"model directory '{source}' has no *.safetensors weights: give a complete model directory")


def _check_index(path: Path) -> None:
    """Raise a `UserError` where the index of sharded weights names anything but safetensors files beside it."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"'{index}' is not an index of weights: give a complete model directory") from None
    for shard in sorted(map(str, shards)):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"'{index}' names '{shard}': only safetensors files beside it are loaded")
        if not (path / shard).is_file():
            raise UserError(f"model directory '{path}' lacks {shard}, which its index names: give a complete one")


def looks_like_hub_id(source: str) -> bool:
    """Whether `source` has the form `owner/name` of a hub repository."""
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "~"))


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
    """Load a causal language model in float32, in evaluation mode.

    float32 are the master weights of training; on a GPU the forward pass runs in bfloat16 under autocast.
    Raises `UserError` on a missing directory, pickle weights, weights that are missing or of another shape than the
    config says (the loader would draw them at random), or a model type that would need remote code.
    """
    from transformers import AutoModelForCausalLM

    model, wrong = load_weights(AutoModelForCausalLM, str(source), "model")
    if wrong:
        raise UserError(
            f"the weights of '{source}' do not fit its config.json: {len(wrong)} are missing or of another shape, such "
            f"as {wrong[0]}"
        )
    return model.to(device if device is not None else default_device()).eval()


def load_weights(auto_class: Any, source: str, what: str) -> tuple[PreTrainedModel, list[str]]:
    """The model of one of transformers' auto classes in float32, and the names of weights that the source lacks.

    What is missing or of another shape has been drawn at random: the caller refuses it. `what` is for errors.
    """
    from transformers import AutoConfig

    check_model_source(source)
    model: PreTrainedModel
    quiet = without_chatter() if Path(source).exists() else contextlib.nullcontext()  # a download shows its progress
    with explained(source, what), quiet:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        choose_implementations(config)
        model, found = auto_class.from_pretrained(
            source,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return model, sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])


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


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save model and tokenizer as a Hugging Face directory that appears whole or not at all.

    The weights keep the dtype they have, which is the dtype they were trained in: rounding float32 masters to bfloat16
    can undo updates as small as those of a removal.
    """
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    with without_chatter():
        model.save_pretrained(beside, safe_serialization=True)
        tokenizer.save_pretrained(beside)
    if directory.exists():
        shutil.rmtree(directory)
    beside.replace(directory)


def context_length(model: PreTrainedModel) -> int:
    """The number of positions the model was built for; 1,024 where its config does not say."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)


def parameter_count(model: PreTrainedModel) -> int:
    """The number of distinct parameters."""
    return sum(p.numel() for p in model.parameters())
