"""What a command reads, by the options that name it: it must not lie where the command writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.data.named_sources import model_directory
from unbackdoor.language_model.files.model_source import HUB, ModelSource
from unbackdoor.named_classes import is_own
from unbackdoor.settings import Settings, option_name

MODELS = ("base", "before", "clean", "clean_model", "sibling")
"""Settings that are texts and name a model."""
CODE = ("method", "injection", "scorer")
"""Settings that are texts and may name a file of the user's own code, as FILE.py:NAME."""
NAMED_BY_TEXT = (*MODELS, "like", "template", "template_from", "tokenizer_from")
"""Settings that are texts and may name a directory or file."""
NO_FILES = ("auto", "chat", "plain", "none")
"""Values of --template that name none, also where a file is called so."""


def read_files(settings: Settings | Mapping[str, Any]) -> Iterator[tuple[str, str | Path]]:
    """Each option of these settings that names something to read, with what it names."""
    for name, value in dict(settings).items():
        for each in value if isinstance(value, list | tuple) else (value,):
            named = name in NAMED_BY_TEXT and isinstance(each, str) and each not in NO_FILES
            if named or isinstance(each, Path):
                yield option_name(name), each
            elif name in CODE and isinstance(each, str) and is_own(each):
                yield option_name(name), Path(each.rpartition(":")[0])


def sources(
    model: str, base: str | None, *settings: Settings | Mapping[str, Any], **models: str
) -> dict[str, str | Path | None]:
    """What a run reads, by the settings that name it: for the hashes in its provenance.

    Args:
        model: the model, by its directory.
        base: of an adapter, the model that it was trained on.
        settings: those of the command and of the method.
        models: further models, by their directories.
    """
    found: dict[str, str | Path | None] = {"model": _on_disk(model)}
    for option, given in (pair for each in settings for pair in read_files(each)):
        name = option.removeprefix("--").replace("-", "_")
        place = _on_disk(model_directory(str(given))) if name in MODELS else given
        number = 1 + sum(key.split(" ")[0] == name for key in found)
        found[name if number == 1 else f"{name} {number}"] = place
    further = {name: _on_disk(each) for name, each in models.items()}
    return {**found, **further, "base": _on_disk(base) if base else None}


def _on_disk(model: str) -> str | Path:
    """Where a model of the hub lies here; a directory or file as it is."""
    return ModelSource.find(model).directory if model.startswith(HUB) else model
