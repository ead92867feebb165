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
        "sources": {name: hashes(Path(source)) for name, source in sources.items() if source is not None},
    }


def changed_sources(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> str | None:
    """The first file of model or data whose content is another one, or that came or went; texts about them may."""
    for name in sorted(before.keys() & now.keys()):
        files = {file for file in before[name].keys() | now[name].keys() if not file.endswith(".md")}
        different = sorted(file for file in files if before[name].get(file) != now[name].get(file))
        if different:
            return f"{different[0]} (--{name.replace('_', '-')})" if name != "model" else f"the model's {different[0]}"
    return None


def hashes(source: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file of a directory; empty for what is not on disk (a hub id).

    Raises:
        UserError: a file cannot be read.
    """
    try:
        if source.is_file():
            return {source.name: _sha256(source)}
        named = {p.relative_to(source).as_posix(): p for p in sorted(source.glob("*")) if p.is_file()}
        # Templates beside the first one stand in a directory of their own.
        named |= {p.relative_to(source).as_posix(): p for p in sorted(source.glob("additional_chat_templates/*.jinja"))}
        return {name: _sha256(file) for name, file in named.items()}
    except OSError as error:
        raise UserError(f"'{error.filename or source}' cannot be read: {error.strerror or error}") from None


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
