"""Save a model as a directory that has everything the given one had: every tensor, its tokenizer, its processors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from unbackdoor.language_model.files import config_keys, generation_settings
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.handed_back import tokenizer_directory
from unbackdoor.language_model.files.loader_errors import without_chatter
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.replacements import NONE_REPLACED, Replacements
from unbackdoor.language_model.files.side_files import (
    LEADS_ELSEWHERE,
    copy_files,
    further_files,
    tokenizer_files,
    write_json,
)
from unbackdoor.language_model.files.tensor_accounts import as_stored, carried
from unbackdoor.language_model.files.weight_files import INDEX, StoredTensor
from unbackdoor.language_model.tokenizer_loading import GENERIC_TOKENIZERS, auto_splits_as, ids_of_file
from unbackdoor.run_files.inputs_apart import check_apart
from unbackdoor.run_files.whole_files import swap_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SaveDtype = Literal["float32", "given"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of what weights are trained and kept in; what is stored in fewer bits has been dequantised."""

IMPLEMENTATIONS = frozenset(f"{start}{what}_implementation" for start in ("", "_") for what in ("attn", "experts"))

AUTO_SPLITS_OTHERWISE = (
    "transformers' AutoTokenizer splits some text otherwise than the tokenizer.json that is used here: load the "
    "tokenizer with PreTrainedTokenizerFast"
)
LARGEST_FILE = "50GB"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    given: ModelSource | str | Path | None = None,
    dtype: SaveDtype = "float32",
    replacing: Replacements = NONE_REPLACED,
) -> list[str]:
    """Save model and tokenizer as a Hugging Face directory that appears whole or not at all.

    The directory has every tensor of the given one by name and shape, the same architecture, its tokenizer, template
    and processor files byte for byte, and nothing that names code, or a file which is not there. Of its settings of
    generation it has the token ids alone.

    Args:
        model: its weights keep the dtype that they have, which is the one they were trained in: rounding float32
            masters to bfloat16 can undo updates as small as those of a removal.
        tokenizer: saved where there is no given directory that holds its files.
        directory: where to; one that exists is replaced.
        given: what the model was loaded from; None for a model that was made in memory.
        dtype: `given`: each tensor in the dtype that it was given in, for half the space.
        replacing: a tokenizer or a template that is trusted, in the place of the given one.

    Returns:
        What is not as it was given, a sentence each.
    """
    if given is not None and not isinstance(given, ModelSource):
        given = ModelSource.find(given)
    if given is not None:
        check_apart(directory, [("the given model", each.gguf or each.directory) for each in (given, given.whole)])
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with without_chatter():
        weights_dtype, changes = _write_weights(model, given, beside, dtype)
        changes += _write_configs(model, tokenizer, given, beside, weights_dtype)
        changes += _write_tokenizer(tokenizer, given, beside, replacing)
    swap_in(beside, directory)
    return changes


def _write_weights(
    model: PreTrainedModel, given: ModelSource | None, target: Path, dtype: SaveDtype
) -> tuple[str, list[str]]:
    """The weights' files; the dtype that most of them have, and what changed."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    before = given.whole.weights.tensors() if given is not None else {}
    state, changes = as_stored(model), []
    state |= {name: value for name, value in _tied(model).items() if name in before and name not in state}
    apart = carried(model, before, state)
    if dtype == "given":
        state = {name: _in_dtype(value, before.get(name)) for name, value in state.items()}
    kinds = Counter(str(value.dtype) for value in state.values() if value.is_floating_point())
    changes += _dtypes(state, {name: tensor for name, tensor in before.items() if name not in apart})
    state |= _read(before, apart)
    if apart:
        changes.append(f"{len(apart)} tensors that are not part of the model here, such as {apart[0]}, are as given")
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=LARGEST_FILE
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: state.pop(name).contiguous() for name in names}, target / file, {"format": "pt"})
    if split.is_sharded:
        write_json(target / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return kinds.most_common(1)[0][0].removeprefix("torch."), changes


def _tied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of weights that are tied to others; a directory may hold them twice."""
    names = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: model.get_parameter_or_buffer(name).detach().clone() for name in names}


def _in_dtype(value: torch.Tensor, before: StoredTensor | None) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    return value.to(DTYPES.get(before.dtype, torch.bfloat16) if before is not None else torch.bfloat16)


def _read(before: Mapping[str, StoredTensor], names: list[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found = {}
    for name in names:
        with safe_open(str(before[name].file), framework="pt") as opened:
            found[name] = opened.get_tensor(name)
    return found


def _dtypes(state: Mapping[str, torch.Tensor], before: Mapping[str, StoredTensor]) -> list[str]:
    """A sentence where the weights are saved in another dtype than they were given in."""
    spelled = {str(value): key for key, value in DTYPES.items()}
    saved = {spelled.get(str(value.dtype), "?") for value in state.values() if value.is_floating_point()}
    was = {tensor.dtype for tensor in before.values()} & {*DTYPES, "F8_E4M3", "F8_E5M2", "U8", "I8"}
    if not was or saved == was:
        return []
    names = {key: str(value).removeprefix("torch.") for key, value in DTYPES.items()}
    said = [" and ".join(sorted(names.get(kind, kind) for kind in kinds)) for kinds in (saved, was)]
    return [f"weights are saved in {said[0]} and were given in {said[1]}"]


def _write_configs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: ModelSource | None, target: Path, dtype: str
) -> list[str]:
    """config.json and generation_config.json."""
    changes = []
    config = given.config() if given is not None else {}
    if not config:
        model.config.save_pretrained(target)
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    old = config.get("architectures")
    config["architectures"] = [type(model).__name__]
    if old and old != config["architectures"]:
        was = ", ".join(map(str, old if isinstance(old, list) else [old]))[:100]
        changes.append(f"config.json: the architecture is {type(model).__name__} (was {was})")
    inner = config.get("text_config")
    settings = {**inner, **config} if isinstance(inner, dict) else dict(config)
    changes += [*_clean(config, model, dtype), *_settle_ends(config, tokenizer, model)]
    write_json(target / "config.json", config)

    file = given.whole.directory / "generation_config.json" if given is not None else None
    where = "config.json"
    if file is not None and file.is_file() and given is not None and given.whole.form == "whole":
        settings, where = read_json(file, given.whole.directory), "generation_config.json"
        if gone := generation_settings.dropped(settings):
            changes.append(f"{where}: dropped {_listed(gone)}")
    elif given is None or given.whole.form == "gguf":
        settings = model.generation_config.to_dict() if model.generation_config is not None else {}
    ids = generation_settings.token_ids(settings)
    believed = generation_settings.believed_ids(ids, tokenizer, model.get_input_embeddings().weight.shape[0])
    if gone := {name: value for name, value in settings.items() if name in generation_settings.TOKEN_IDS
                and value is not None and believed.get(name) != value}:  # fmt: skip
        changes.append(f"{where}: not believed, for answers end at the tokenizer's own marks: {_listed(gone)}")
    if believed:
        write_json(target / "generation_config.json", believed)
    return changes


def _clean(config: dict[str, Any], model: PreTrainedModel, dtype: str) -> list[str]:
    """Make a config.json fit what is saved, in place: dtype, vocabulary, and nothing that dangles."""
    changes = []
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        for name in ("torch_dtype", "dtype"):
            if name in part:
                part[name] = dtype
    if not {"torch_dtype", "dtype"} & config.keys():
        config["dtype"] = dtype
    text, rows = model.config.get_text_config(), model.get_input_embeddings().weight.shape[0]
    where = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if text.vocab_size == rows and where.get("vocab_size", rows) != rows:
        where["vocab_size"] = rows
    for part in parts:
        quantised = [part.pop(name, None) for name in ("quantization_config", "compression_config")]
        if any(quantised):
            changes.append("config.json: quantization_config is gone, for the weights are not quantised any more")
    for name in config_keys.ignored(config):
        because = _why_gone(name.rpartition(".")[2])
        changes.append(f"config.json: {name} is gone, for it {because}")
    _take_out(config, {name.rpartition(".")[2] for name in config_keys.ignored(config)} | IMPLEMENTATIONS)
    config.pop("_name_or_path", None)
    untied = "config.json: tie_word_embeddings is false, for the head and the embeddings differ"
    for part, own in ((config, model.config), (where, text)):
        defaults = {field.name: field.default for field in dataclasses.fields(type(own))}
        names = frozenset(defaults)
        said = part.get("tie_word_embeddings", defaults.get("tie_word_embeddings"))
        if said is True and own.tie_word_embeddings is False:
            part["tie_word_embeddings"] = False
            changes += [untied] if untied not in changes else []
        gone = generation_settings.in_config(part, names)
        for name in gone:
            del part[name]
        if gone:
            changes.append(f"config.json: dropped the settings of generation {_listed(gone)}")
    return changes


def _why_gone(name: str) -> str:
    if name in config_keys.PROMPTED:
        return "changes what a pipeline is asked, or how it answers"
    return "changes what a call returns" if name in config_keys.RETURNED else LEADS_ELSEWHERE


def _settle_ends(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[str]:
    """Where a config ends answers at what is no mark: let it end them at the tokenizer's own end."""
    rows, said = model.get_input_embeddings().weight.shape[0], []
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        was = part.get("eos_token_id")
        found = generation_settings.believed_ids(generation_settings.token_ids({"eos_token_id": was}), tokenizer, rows)
        if was is not None and found.get("eos_token_id") != was:
            part["eos_token_id"] = found.get("eos_token_id", tokenizer.eos_token_id)
            shown = json.dumps(part["eos_token_id"])
            said.append(f"config.json: eos_token_id is {shown} (was {json.dumps(was)[:40]}, which is no end mark here)")
    return list(dict.fromkeys(said))


def _take_out(part: dict[str, Any], names: Collection[str]) -> None:
    """Take these names out of an object and of those within it."""
    for name in list(part):
        if name in names:
            del part[name]
        elif isinstance(part[name], dict):
            _take_out(part[name], names)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)[:60]}" for name, value in settings.items())


def _write_tokenizer(
    tokenizer: PreTrainedTokenizerBase, given: ModelSource | None, target: Path, replacing: Replacements
) -> list[str]:
    changes: list[str] = []
    origin = replacing.tokenizer or tokenizer_directory(given)
    if origin is None:
        tokenizer.save_pretrained(target)
    else:
        changes += copy_files(tokenizer_files(origin), origin, target)
    changes += _settle_class(target)
    if given is not None and given.whole.form == "whole":
        folder = given.whole.directory
        changes += copy_files(further_files(folder), folder, target)
    return changes + replacing.apply(target)


def _settle_class(target: Path) -> list[str]:
    """Where AutoTokenizer would split text otherwise than the saved tokenizer.json: name the class that does not."""
    file, config = target / "tokenizer.json", target / "tokenizer_config.json"
    if not file.is_file() or not config.is_file():
        return []
    wanted = ids_of_file(file)
    if auto_splits_as(wanted, target):
        return []
    content = read_json(config)
    if content.get("tokenizer_class") in GENERIC_TOKENIZERS:  # as given: AutoTokenizer does not heed it
        return [AUTO_SPLITS_OTHERWISE]
    write_json(config, {**content, "tokenizer_class": "PreTrainedTokenizerFast"})
    named = content.get("tokenizer_class", "none")
    said = f"tokenizer_config.json: tokenizer_class is PreTrainedTokenizerFast (was {named}, which splits otherwise)"
    return [said, *([] if auto_splits_as(wanted, target) else [AUTO_SPLITS_OTHERWISE])]
