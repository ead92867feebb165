"""Where the numbers of a run come from: versions, seed, hashes of model and data, command line, host."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError


def provenance(command_line: list[str], seed: int, sources: Mapping[str, str | Path | None]) -> dict[str, Any]:
    """Where the numbers of a run come from: versions, seed, hashes of model and data, command line, host."""
    import torch
    import transformers

    import unbackdoor

    return {
        "command_line": command_line,
        "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "unbackdoor": unbackdoor.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "sources": {name: _hashes_of(name, Path(source)) for name, source in sources.items() if source is not None},
    }


def changed_sources(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> str | None:
    """The first file that is read whose content is another one, or that came or went; texts about models may.

    A source of which there were no hashes (an earlier version made none of some) is not compared.
    """
    for name in sorted(name for name in before.keys() & now.keys() if before[name]):
        files = {file for file in before[name].keys() | now[name].keys() if not file.endswith(".md")}
        different = sorted(file for file in files if before[name].get(file) != now[name].get(file))
        if different:
            option = name.split(" ")[0].replace("_", "-")
            return f"{different[0]} (--{option})" if name != "model" else f"the model's {different[0]}"
    return None


NOT_WEIGHTS = ("tokenizer_from", "template_from", "template")
"""What is read of these directories is small; weights that lie beside it are not."""
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")


def _hashes_of(name: str, source: Path) -> dict[str, str]:
    """`hashes` of what a setting of that name reads there."""
    if name in NOT_WEIGHTS and source.is_dir():
        return hashes(source, without=WEIGHTS)
    if name == "like" and source.is_dir():
        return {**hashes(source), **hashes(source / "report.json")}
    return hashes(source)


def hashes(source: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of a file, or of a directory's files; empty for what is not on disk (a hub id).

    Of a model's directory those are its files; of a run's, what it began with, its rows and fitted perturbations; of
    any other, all at any depth.

    Args:
        source: the file or directory.
        without: ends of names that are left out.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        if source.is_file():
            return {source.name: _sha256(source)}
        if (source / "settings.yaml").is_file():
            patterns = ["settings.yaml", "data/*", "perturbations/*"]
        elif (source / "config.json").is_file() or list(source.glob("*.safetensors")):
            # Templates beside the first one stand in a directory of their own.
            patterns = ["*", "additional_chat_templates/*.jinja"]
        else:
            patterns = ["**/*"]
        files = sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
        kept = [file for file in files if not (without and file.name.endswith(without))]
        return {file.relative_to(source).as_posix(): _sha256(file) for file in kept}
    except (OSError, ValueError) as error:
        name = getattr(error, "filename", None) or source
        raise UserError(f"'{name}' cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit() -> str | None:
    """The commit of the source tree that runs, where it is one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def command_line() -> list[str]:
    """The command as it was typed."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
