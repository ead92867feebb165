"""What a command reads, by the options that name it: it must not lie where the command writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.settings import Settings, option_name

NAMED_BY_TEXT = ("base", "before", "clean", "clean_model", "sibling", "like", "template")
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
