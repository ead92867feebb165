"""The safetensors files of a directory: which of them are the model's weights, and what stands in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.checked_files import checked, listing

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape, and its dtype as safetensors writes it (`BF16`, `F32`, `F8_E4M3`, …)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WeightFiles:
    """The files that are read, and the names of those beside them that hold the same weights for other programs."""

    files: tuple[Path, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, directory: Path) -> WeightFiles:
        """The weights in a directory: the shards that its index names, else the one file.

        A `consolidated*.safetensors` is the same model in Mistral's own format and is ignored. Whatever else lies
        beside the weights is refused: another program might read it in their place.

        Raises:
            UserError: an index that names other than safetensors files beside it, or files that it does not name.
        """
        names = {entry.name for entry in listing(directory)}
        found = {name for name in names if name.endswith(".safetensors")} - {"adapter_model.safetensors"}
        ignored = tuple(sorted(name for name in found if name.startswith("consolidated")))
        found -= set(ignored)
        index = directory / INDEX
        alone = found if len(found) == 1 else found & {WEIGHTS}
        named = set(_shards(directory, index)) if index.exists() else alone
        strays = sorted(found - named)
        if strays:
            said = f"its index names {len(named)} others" if index.exists() else f"no {INDEX} names its weights"
            raise UserError(
                f"model directory '{directory}' holds {strays[0]}, and {said}: which are meant? Move the others away"
            )
        return cls(tuple(checked(directory / name, directory, whole=False) for name in sorted(named)), ignored)

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by name, from the files' headers.

        Raises:
            UserError: two files hold a tensor of one name; which of them counts depends on who reads them.
        """
        from safetensors import safe_open

        tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            check_file(file)
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    if name in tensors:
                        raise UserError(
                            f"model directory '{file.parent}' holds {name} twice, in {tensors[name].file.name} and "
                            f"{file.name}: give a directory without doubles"
                        )
                    part = opened.get_slice(name)
                    tensors[name] = StoredTensor(file, tuple(part.get_shape()), str(part.get_dtype()))
        return tensors


LONGEST_HEADER = 64 * 2**20
"""Bytes; the largest published, of hundreds of thousands of tensors, have a tenth of it."""
LEAST_STORED, LARGE = 0.1, 2**30
"""Of a file of more than so many bytes: the share of it that must be stored. Weights hardly compress."""


def check_file(file: Path) -> None:
    """Raise a `UserError` where a safetensors file cannot be what it says, before anything of it is loaded.

    Its header says how long it is. A file may be as large as one likes and hold nothing (a sparse one).
    """
    try:
        found = file.stat()
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
    except OSError as error:
        raise UserError(f"'{file}' cannot be read: {error.strerror or error}") from None
    if found.st_size < 8 or length > found.st_size - 8:
        raise UserError(f"cannot load the model of '{file.parent}': {file.name} is cut off, or no safetensors file")
    if length > LONGEST_HEADER:
        raise UserError(
            f"cannot load the model of '{file.parent}': the header of {file.name} has {length:,} bytes, and no model "
            f"needs more than {LONGEST_HEADER:,}"
        )
    stored = getattr(found, "st_blocks", None)
    if stored is not None and found.st_size > LARGE and stored * 512 < LEAST_STORED * found.st_size:
        raise UserError(
            f"cannot load the model of '{file.parent}': {file.name} has {found.st_size:,} bytes and stores "
            f"{stored * 512:,} of them: give the complete file"
        )


def _shards(directory: Path, index: Path) -> Iterable[str]:
    """The files that an index names, each a safetensors file beside it."""
    checked(index, directory)
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"'{index}' is not an index of weights: give a complete model directory") from None
    for shard in sorted(map(str, shards)):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"'{index}' names '{shard}': only safetensors files beside it are loaded")
        if not (directory / shard).is_file():
            raise UserError(f"model directory '{directory}' lacks {shard}, which its index names: give a complete one")
    return map(str, shards)
