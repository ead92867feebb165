"""What a report says of the form in which a model was given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unbackdoor.errors import UserError
from unbackdoor.language_model.files import gguf_files
from unbackdoor.language_model.files.checked_files import listing, read_json
from unbackdoor.language_model.files.config_keys import ignored, ignored_in_tokenizer
from unbackdoor.language_model.files.model_source import PICKLE_SUFFIXES, ModelSource
from unbackdoor.language_model.files.quantised_weights import method_of
from unbackdoor.language_model.tokenizer_loading import load_tokenizer


def form_of(source: str | Path, base: str | Path | None = None) -> list[str]:
    """Sentences on what was done as the model was loaded; none of a plain directory of safetensors."""
    given = ModelSource.find(source, base)
    said = []
    if given.base is not None:
        said.append(f"the adapter '{given.name}' was merged into its base '{given.base.name}'")
    whole = given.whole
    if whole.form == "gguf":
        said += gguf_files.told(whole, load_tokenizer(whole.name))
    elif (method := method_of(whole.config())) is not None:
        said.append(f"the weights were quantised ({method}) and were dequantised")
    if whole.weights.ignored:
        said.append(f"{', '.join(whole.weights.ignored)}: the same weights for another program, neither read nor saved")
    said += not_heeded(given)
    return said


def not_heeded(given: ModelSource) -> list[str]:
    """What lies in the given directory, or stands in its configs, and is neither read nor saved, a sentence each."""
    said = []
    for source in dict.fromkeys((given, given.whole)):
        if source.form == "gguf":
            continue
        directory = source.directory
        names = [entry.name for entry in listing(directory) if entry.name.endswith((*PICKLE_SUFFIXES, ".py"))]
        if names:
            listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            said.append(f"pickles and code in the directory ({listed}) are neither read nor saved")
        path = directory / "tokenizer_config.json"
        found = ignored_in_tokenizer(read_json(path, directory)) if path.is_file() else {}
        if found:
            said.append(f"tokenizer_config.json: not heeded: {', '.join(found)}"[:300])
    if found := ignored(given.config()):
        said.append(f"config.json: not heeded: {', '.join(found)}"[:300])
    return said


def check_base(base: str | Path | None, sources: Iterable[str | Path]) -> None:
    """Raise a `UserError` where a base is given and none of these models is an adapter."""
    if base is not None and all(ModelSource.find(source, base).base is None for source in sources):
        raise UserError("--base is for adapters, and no model that was given is one: leave it out")
