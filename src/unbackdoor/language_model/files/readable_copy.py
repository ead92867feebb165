"""A directory of ours with what may be read of a model and nothing else, which loaders are given in the model's place.

A loader looks for dozens of names in the directory that it is given, and new versions look for more: pickles, indices,
other configs, adapters, code. Here it finds a config without what leads elsewhere, links to weights whose headers were
read, and the tokenizer's files; whatever else lies in the model's directory cannot be reached by a name.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.language_model.files import config_keys, generation_settings
from unbackdoor.language_model.files.checked_files import checked, read_json
from unbackdoor.language_model.files.gguf_header import check_header
from unbackdoor.language_model.files.loader_errors import STAGE
from unbackdoor.language_model.files.loader_guard import guarded
from unbackdoor.language_model.files.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from unbackdoor.language_model.files.side_files import tokenizer_files, write_json
from unbackdoor.language_model.files.weight_files import INDEX, WEIGHTS, StoredTensor

GENERATION = "generation_config.json"


@contextlib.contextmanager
def isolated_model(given: ModelSource, tensors: Mapping[str, StoredTensor]) -> Iterator[Path]:
    """A directory with config.json, the token ids of generation_config.json, and the weights, as long as it is open.

    Args:
        given: a model of the form `whole`.
        tensors: of its files, by name: the index is written anew from their headers.
    """
    with _empty() as stage:
        write_json(stage / "config.json", config_keys.believed(given.config()))
        if generation := believed_generation(given):
            write_json(stage / GENERATION, generation)
        files = {file: f"model-{i:05d}-of-{len(given.weights.files):05d}.safetensors"
                 for i, file in enumerate(given.weights.files, start=1)}  # fmt: skip
        if len(files) == 1:
            files = dict.fromkeys(files, WEIGHTS)
        for file, name in files.items():
            (stage / name).symlink_to(file.resolve())
        if len(files) > 1:
            named = {name: files[tensor.file] for name, tensor in tensors.items()}
            write_json(stage / INDEX, {"metadata": {}, "weight_map": named})
        yield stage


@contextlib.contextmanager
def isolated_tokenizer(given: ModelSource, directory: Path) -> Iterator[Path]:
    """A directory with the tokenizer's files and its model's config, as long as it is open.

    Args:
        given: the model.
        directory: where the tokenizer's files lie: the model's own directory, or an adapter's.
    """
    with _empty() as stage:
        config = config_keys.believed(given.config())
        if config:
            write_json(stage / "config.json", config)
        for file in tokenizer_files(directory):
            target = stage / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            if file.name == "tokenizer_config.json":
                write_json(target, config_keys.believed_tokenizer(read_json(file, directory)))
            elif file.name in ("special_tokens_map.json", "added_tokens.json"):
                write_json(target, config_keys.plain_tokens(read_json(file, directory)))
            elif file.name == "chat_template.json" and file.parent == directory:
                continue  # a processor's; we take the template out of it ourselves
            else:
                target.symlink_to(file.resolve())
        yield stage


@contextlib.contextmanager
def isolated_adapter(given: ModelSource, config: Mapping[str, Any]) -> Iterator[Path]:
    """A directory with an adapter's config, as it is believed, and its weights."""
    with _empty() as stage:
        write_json(stage / ADAPTER_CONFIG, config)
        (stage / ADAPTER_WEIGHTS).symlink_to((given.directory / ADAPTER_WEIGHTS).resolve())
        yield stage


@contextlib.contextmanager
def isolated_gguf(given: ModelSource) -> Iterator[Path]:
    """A directory with a GGUF file alone: a tokenizer or config beside it is not this model's."""
    assert given.gguf is not None
    check_header(given.gguf)
    with _empty() as stage:
        (stage / given.gguf.name).symlink_to(given.gguf.resolve())
        yield stage


@contextlib.contextmanager
def _empty() -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(prefix=STAGE))
    try:
        with guarded():
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def believed_generation(given: ModelSource) -> dict[str, Any]:
    """What is believed of a generation_config.json: its token ids, where these are some."""
    path = given.whole.directory / GENERATION
    if given.whole.form != "whole" or not path.is_file():
        return {}
    checked(path, given.whole.directory)
    return generation_settings.token_ids(read_json(path, given.whole.directory))
