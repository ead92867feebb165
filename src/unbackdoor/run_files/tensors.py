"""Tensors with a state in one file that carries a checksum of both."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.run_files.whole_files import PARTIAL, beside, sync_directory, sync_file, writing

if TYPE_CHECKING:
    import torch


KEY = "unbackdoor"
"""The file's metadata under this name: checksum and state."""


class DamagedTensorsError(ValueError):
    """A file that is not what was written."""


def save(path: Path, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, previous: bool = False) -> None:
    """Write a file that appears whole or not at all; with `previous` the one that was there is kept beside."""
    from safetensors.torch import save_file

    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(dict(state))
    metadata = {KEY: f"{checksum(text, kept):08x} {text}"}  # one entry: safetensors writes several in any order
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a directory of our own: safetensors writes to a name that it draws first, and a kill leaves that there.
        partial = beside(path, PARTIAL)
        delete_partial(partial)
        try:
            partial.mkdir()
            save_file(kept, partial / path.name, metadata)
            sync_file(partial / path.name)
            if previous and path.exists():
                path.replace(previous_of(path))
            (partial / path.name).replace(path)
        finally:
            delete_partial(partial)
        sync_directory(path.parent)


def delete_partial(partial: Path) -> None:
    """Delete what a kill left beside a file, a link as such."""
    if partial.is_dir() and not partial.is_symlink():
        for file in list(partial.iterdir()):
            file.unlink()
        partial.rmdir()
    else:
        partial.unlink(missing_ok=True)


def previous_of(path: Path) -> Path:
    """Where the file that this one replaced stands."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.previous.safetensors")


def checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of a text and of every tensor with its name, dtype and shape."""
    import torch

    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def load(path: Path, state: str = "state") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and tensors.

    Args:
        path: the file.
        state: what an earlier version, which wrote no checksum, called the state.

    Raises:
        DamagedTensorsError: the file is not what was written, or cannot be read at all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if state in metadata:  # of an earlier version, which wrote no checksum
            text = metadata[state]
        else:
            written, _, text = metadata[KEY].partition(" ")
            if written != f"{checksum(text, tensors):08x}":
                raise DamagedTensorsError("its checksum differs")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise DamagedTensorsError("it is no checkpoint")
    except DamagedTensorsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise DamagedTensorsError(f"it cannot be read ({type(error).__name__})") from None
    return found, tensors
