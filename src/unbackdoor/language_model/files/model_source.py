"""Where a model's files lie and in which form: whole weights, an adapter with its base, or a GGUF file.

A suspect model comes from an attacker: only safetensors and GGUF files are read, remote code never runs, and nothing is
unpickled. What could be read in two ways is refused, for another program might read it the other way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.checked_files import checked, listing, read_json
from unbackdoor.language_model.files.weight_files import INDEX, WEIGHTS, WeightFiles

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

HUB = "hf:"
"""Only what begins so is asked for on the hub: a path that was mistyped must never become another's model."""
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""`owner/name`."""

DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*"]
"""What is fetched of a hub repository: never code, never pickles."""
NOT_DOWNLOADED = ["original/*", "onnx/*", "openvino/*", "coreml/*", "consolidated*.safetensors"]
"""The same weights in the formats of other programs."""


@dataclass(frozen=True)
class ModelSource:
    """A model as it was given, found and checked.

    Args:
        name: as it was given: a directory, a file or a hub id with `hf:` before it.
        directory: where its files lie.
        form: whole weights, an adapter, or a GGUF file.
        weights: the safetensors files that are read; none of a GGUF file.
        base: of an adapter, the model that it was trained on.
        gguf: the GGUF file.
    """

    name: str
    directory: Path
    form: Literal["whole", "adapter", "gguf"]
    weights: WeightFiles
    base: ModelSource | None = None
    gguf: Path | None = None

    @classmethod
    def find(cls, source: str | Path, base: str | Path | None = None) -> ModelSource:
        """Look at what lies at `source`, fetching it first where that names a model of the hub.

        Args:
            source: a directory, a GGUF file or `hf:owner/name`.
            base: of an adapter, the model that it was trained on; other forms have none and do not look at it.

        Raises:
            UserError: there is no model, it is not complete, it could be read in two ways, or it holds pickles alone.
        """
        name, path = str(source), _on_disk(str(source))
        if path.is_file():
            if path.suffix != ".gguf":
                raise UserError(
                    f"model '{name}' is a file: give the directory that holds config.json and safetensors (or a .gguf)"
                )
            return cls(name, path.parent, "gguf", WeightFiles(), gguf=checked(path, path.parent, whole=False))
        if not path.is_dir():
            raise UserError(f"model '{name}' is neither a directory nor a file: give the model's directory")
        names = [entry.name for entry in listing(path)]
        weights = WeightFiles.of(path)
        if (path / ADAPTER_CONFIG).is_file():
            return cls._adapter(name, path, weights, base)
        if not weights.files and (found := [file for file in names if file.endswith(".gguf")]):
            if len(found) > 1:
                listed = ", ".join(found[:4])
                raise UserError(f"'{name}' holds {len(found)} GGUF files ({listed}): give the one that is meant")
            return cls(name, path, "gguf", weights, gguf=checked(path / found[0], path, whole=False))
        _check_whole(name, path, weights)
        return cls(name, path, "whole", weights)

    @classmethod
    def _adapter(cls, name: str, path: Path, weights: WeightFiles, base: str | Path | None) -> ModelSource:
        if weights.files:
            raise UserError(
                f"'{name}' holds a whole model ({weights.files[0].name}) and an adapter ({ADAPTER_CONFIG}): which of "
                "them is meant? Move the other one away"
            )
        if not (path / ADAPTER_WEIGHTS).is_file():
            pickled = " (adapter_model.bin is a pickle, which can run code)" if list(path.glob("*.bin")) else ""
            raise UserError(f"the adapter '{name}' has no {ADAPTER_WEIGHTS}{pickled}: give one in safetensors")
        checked(path / ADAPTER_WEIGHTS, path, whole=False)
        named = str(read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
        if base is None:
            local = [found for found in (Path(named), path / named) if named and _exists(found)]
            if not local:
                what = f"of '{named[:200]}', which is not here" if named else "and does not say of which model"
                hub = f" (a model of the hub: --base {HUB}{named})" if looks_like_hub_id(named) else ""
                raise UserError(f"'{name}' is an adapter {what}: give its base model with --base DIR{hub}")
            base = local[0]
        if _exists(Path(base) / ADAPTER_CONFIG):  # before it is looked at: it may name this one as its own base
            raise UserError(f"the base '{base}' of the adapter '{name}' is an adapter itself: merge that one first")
        found = cls.find(base)
        if found.form == "adapter":
            raise UserError(f"the base '{base}' of the adapter '{name}' is an adapter itself: merge that one first")
        return cls(name, path, "adapter", weights, base=found)

    @property
    def whole(self) -> ModelSource:
        """The model whose config, architecture and further files these are: of an adapter, its base."""
        return self.base if self.base is not None else self

    def config(self) -> dict[str, Any]:
        """Its config.json as it stands; empty for a GGUF file, and for a directory that holds a tokenizer alone."""
        path = self.whole.directory / "config.json"
        return read_json(path) if self.whole.form == "whole" and path.is_file() else {}


def looks_like_hub_id(source: str) -> bool:
    """Whether `source` has the form `owner/name` of a hub repository."""
    return len(source) <= 200 and re.fullmatch(HUB_ID, source) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or none that a file can have
        return False


def _on_disk(name: str) -> Path:
    """The directory or file of a model, downloaded where it is one of the hub's by its prefix."""
    if name.startswith(HUB):
        return _fetched(name, name.removeprefix(HUB))
    if _exists(path := Path(name)):
        return path
    hub = f"; a model of the hub is given as {HUB}{name}" if looks_like_hub_id(name) else ""
    raise UserError(f"model directory '{name[:300]}' does not exist: give a Hugging Face model directory{hub}")


def _fetched(name: str, repository: str) -> Path:
    if not looks_like_hub_id(repository):
        raise UserError(f"'{name[:300]}' is no model of the hub: give {HUB}owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED))
    except Exception as error:  # the hub client raises everything from OSError to its own kinds
        raise UserError(
            f"'{name}' was not fetched from the hub ({_first_cause(error)}): give a Hugging Face directory, or "
            f"{HUB}owner/name with a connection to the hub"
        ) from error


def _first_cause(error: BaseException) -> str:
    """Why nothing came, in a few words: without a connection the hub client tells of its cache instead."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 120 else said[:119] + "…"


def _check_whole(name: str, path: Path, weights: WeightFiles) -> None:
    """There are a config and weights, and both may be opened."""
    if not (path / "config.json").is_file():
        if (path / "model" / "config.json").is_file():
            raise UserError(f"'{name}' is a run directory: give its model, '{path / 'model'}'")
        raise UserError(f"model directory '{name}' has no config.json: give a Hugging Face model directory")
    checked(path / "config.json", path)
    if not weights.files:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise UserError(
                f"'{name}' has only pickle weights ({pickles[0]}), which can run code when loaded: convert them to "
                "safetensors on an isolated machine (model.save_pretrained(DIR)) and give that directory"
            )
        raise UserError(f"model directory '{name}' has no *.safetensors weights: give a complete model directory")
    file = weights.files[0].name
    if file != WEIGHTS and not (path / INDEX).exists():
        is_part = re.search(r"-\d{5}-of-\d{5}\.", file) is not None
        remedy = f"add {INDEX} and the other parts" if is_part else f"rename it to {WEIGHTS} if it is the model"
        raise UserError(f"model directory '{name}' holds {file} and no {WEIGHTS}: {remedy}")
