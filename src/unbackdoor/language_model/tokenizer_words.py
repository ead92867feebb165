"""Which tokens of a tokenizer are not what they seem: words that count as special, one id of two, a frame of others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.language_model.files.checked_files import read_json

WORD = re.compile(r"\W*[^\W\d_]{2,}[\w '’.-]*")
"""A special token without brackets or digits is a word, which decoding would drop from answers."""
USUAL_WORDS = ("pad", "unk", "bos", "eos", "sep", "cls", "mask")
SHOWN = 5


def of_vocabulary(content: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    """Of a tokenizer.json, and the model in it: a sentence on each thing that such files do not do."""
    added = [token for token in _list(content.get("added_tokens")) if isinstance(token, Mapping)]
    name = "tokenizer.json"
    special = [token.get("content") for token in added if token.get("special")]
    yield from special_words(name, [*special, model.get("unk_token")])
    vocabulary = model.get("vocab")
    ids: dict[Any, str] = {}
    if isinstance(vocabulary, Mapping):
        named = [*vocabulary.items(), *((str(token.get("content")), token.get("id")) for token in added)]
        several = [text for text, i in named if isinstance(i, int) and ids.setdefault(i, text) != text]
        if several:
            yield f"{name}: {len(several)} of its tokens have the id of another one: {_shown(several)}"
    places = {text: i for i, text in ids.items()}
    for step in _frames(content.get("post_processor")):
        given = step.get("special_tokens")
        for text, token in given.items() if isinstance(given, Mapping) else ():
            if isinstance(token, Mapping) and token.get("ids") != [places.get(text)]:
                yield f"{name}: its post_processor writes other tokens for {text[:40]!r}: {str(token.get('ids'))[:40]}"
    cut = content.get("truncation")
    if isinstance(cut, Mapping):
        yield f"{name}: programs that heed its truncation cut every text to {str(cut.get('max_length'))[:20]} tokens"


def in_configs(directory: Path) -> Iterator[str]:
    """A sentence where the configs of a tokenizer make words special, or the beginning or end of a text."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            yield from special_words(name, _named(read_json(directory / name, directory)))


def _named(config: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in config.items():
        if name.endswith("_token"):
            yield value
        elif name.endswith("special_tokens"):
            yield from value.values() if isinstance(value, Mapping) else _list(value)
        elif name == "added_tokens_decoder" and isinstance(value, Mapping):
            yield from (token for token in value.values() if isinstance(token, Mapping) and token.get("special"))


def special_words(file: str, tokens: Any) -> Iterator[str]:
    """A sentence where tokens that are words count as special: decoding drops those."""
    texts = (token.get("content") if isinstance(token, Mapping) else token for token in tokens)
    words = [text for text in dict.fromkeys(text for text in texts if isinstance(text, str)) if _is_word(text)]
    if words:
        yield f"{file}: {len(words)} of its special tokens are words, which decoding can drop: {_shown(words)}"


def _is_word(text: str) -> bool:
    return WORD.fullmatch(text) is not None and text.strip().casefold() not in USUAL_WORDS


def _shown(texts: list[str]) -> str:
    return ", ".join(repr(text[:30]) for text in texts[:SHOWN])


def _frames(step: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    if isinstance(step, Mapping) and depth < 10:
        yield step
        for inner in _list(step.get("processors")):
            yield from _frames(inner, depth + 1)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
