"""What a saved model takes over from the directory that it came from: tokenizer, templates, processors, licences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unbackdoor.language_model.files import config_keys
from unbackdoor.language_model.files.checked_files import checked, listing

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*tokenizer.model*",
    "*.spm",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tiktoken.model",
    "tekken.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"
TEMPLATES = ("chat_template.jinja", "chat_template.json", f"{TEMPLATE_FOLDER}/*.jinja")
PROCESSORS = ("*processor_config.json", "preprocessor_config.json", "*feature_extractor*.json")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LEADS_ELSEWHERE = "leads to code, to other files or to another machine"
SUFFIXES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".jinja", ".md", "")
"""Never code and never pickles, however they are called."""


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of a directory that say how text is split and rendered."""
    return _matching(directory, (*TOKENIZER, *TEMPLATES))


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer, and not only its template."""
    starts = ("tokenizer", "tekken", "vocab", "spiece", "sentencepiece", "tiktoken")
    return any(file.name.startswith(starts) for file in tokenizer_files(directory))


def further_files(directory: Path) -> list[Path]:
    """Files of processors of pictures and sound, and licences."""
    return [*_matching(directory, PROCESSORS), *_matching(directory, LICENCES, folders=False)]


def copy_files(files: Iterable[Path], origin: Path, target: Path) -> list[str]:
    """Copy files byte for byte, but for what in them leads to code or elsewhere: that does not come along.

    Returns:
        A sentence for each name that was taken out of one.
    """
    said = []
    for file in files:
        copied = target / file.relative_to(origin)
        copied.parent.mkdir(parents=True, exist_ok=True)
        content = _object(file) if file.suffix == ".json" else {}
        if file.name == "tokenizer_config.json":
            gone = list(config_keys.ignored_in_tokenizer(content))
        else:
            gone = [name for name in content if name in config_keys.CODE]
        if gone:
            write_json(copied, {name: value for name, value in content.items() if name not in gone})
            said += [f"{file.name}: {name} is gone, for it {LEADS_ELSEWHERE}" for name in gone]
        else:
            shutil.copyfile(file, copied)
    return said


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """An object as transformers writes its files."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _matching(directory: Path, patterns: Iterable[str], *, folders: bool = True) -> list[Path]:
    """The files that match; a folder of such a name is refused, but where folders may have it (`LICENSES`)."""
    names = [entry.name for entry in listing(directory)]
    if TEMPLATE_FOLDER in names and (directory / TEMPLATE_FOLDER).is_dir():
        names += [f"{TEMPLATE_FOLDER}/{entry.name}" for entry in listing(directory / TEMPLATE_FOLDER)]
    matching = [
        directory / name
        for name in sorted(names)
        if Path(name).suffix in SUFFIXES and any(fnmatch(name, pattern) for pattern in patterns)
    ]
    return [checked(path, directory) for path in matching if folders or not path.is_dir()]
