"""What a tokenizer.json does with text beside splitting it: bounded, and told where it is not what tokenizers do.

A normaliser can take a word out of every prompt, a decoder can write another one into every answer, and a token can
stand for a million characters. None of that is in the weights, and all of it would be handed back with the cleansed
model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.tokenizer_words import WORD, of_vocabulary

LONGEST_TOKEN = 4096
"""Characters; the longest published are runs of a few hundred of one character."""
MOST_ADDED, MOST_STEPS, LONGEST_TEXT, LONGEST_PATTERN, MOST_GROWTH = 300_000, 200, 256, 20_000, 64.0
PLAIN_NORMALISERS = (
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Nmt",
    "BertNormalizer",
    "ByteLevel",
    "Sequence",
)
PLAIN_SPLITTERS = (
    "ByteLevel",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
    "BertPreTokenizer",
    "Digits",
    "Punctuation",
    "Split",
    "UnicodeScripts",
    "FixedLength",
    "Sequence",
)
PLAIN_DECODERS = (
    "ByteLevel",
    "Metaspace",
    "WordPiece",
    "BPEDecoder",
    "ByteFallback",
    "Fuse",
    "Strip",
    "Sequence",
)
PLAIN_FRAMES = ("TemplateProcessing", "ByteLevel", "RobertaProcessing", "BertProcessing", "Sequence")
SPACES = re.compile(r"[\s▁Ġ]*")
QUOTES = {"``": '"', "''": '"'}
"""What XLNet's and ALBERT's normalisers write for them."""
KNOWN_MAPS = (
    "1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844",
    "7e46d9e08af4b6a37991b04fb8388644c1595a0abcd0f26d6a5d575e2a3663ea",
    "2c03512e62f9ed965ec90d85314211b63b5b8aa0395311ea2147eec9ff738907",
    "d8dfef3d6db0eef0742f8b55a73aee7fce6c1e21d26a09b8d3d4b52c42a791cb",
)
"""sha256 of sentencepiece's own maps of characters (0.2): nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf."""


def check_tokenizer_file(path: Path, directory: Path) -> None:
    """Raise a `UserError` where a tokenizer.json could make much of little, or splits at random."""
    _examined(path, directory, _state(path))


def unusual_steps(path: Path, directory: Path) -> list[str]:
    """What a tokenizer.json does to text that tokenizers do not do, a sentence each."""
    return list(_examined(path, directory, _state(path)))


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _examined(path: Path, directory: Path, _: tuple[int, int]) -> tuple[str, ...]:
    """Its sentences. A file of 30 MB takes a second to read, and a run loads its tokenizer often."""
    content = read_json(path, directory)
    name = f"'{path}'"
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise UserError(f"cannot load the tokenizer of '{directory}': {path.name} describes no tokenizer")
    if model.get("dropout"):
        raise UserError(f"{name} splits text at random (dropout {str(model['dropout'])[:20]}): set its dropout to null")
    _check_vocabulary(content, model, name)
    said: list[str] = []
    for place, plain, tell in (
        ("normalizer", PLAIN_NORMALISERS, _normaliser),
        ("pre_tokenizer", PLAIN_SPLITTERS, _splitter),
        ("decoder", PLAIN_DECODERS, _decoder),
        ("post_processor", PLAIN_FRAMES, _frame),
    ):
        steps = list(_steps(content.get(place), name, place))
        _check_growth(steps, name, place)
        for step in steps:
            kind = str(step.get("type"))
            told = (
                tell(step)
                if kind in plain or kind in ("Replace", "Prepend", "Precompiled")
                else f"is of the kind {kind[:40]}"
            )
            if told:
                said.append(f"tokenizer.json: a step of its {place} {told}")
    return (*said, *of_vocabulary(content, model))


def _check_vocabulary(content: Mapping[str, Any], model: Mapping[str, Any], name: str) -> None:
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not isinstance(model.get("vocab") or {}, list | Mapping):
        raise UserError(f"{name} has a vocabulary that is none: give a tokenizer's own file")
    if len(added) > MOST_ADDED:
        raise UserError(f"{name} adds {len(added):,} tokens to its vocabulary, and no tokenizer needs {MOST_ADDED:,}")
    fields = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
    for token in added:
        if not isinstance(token, Mapping) or not token.keys() <= fields:
            raise UserError(f"{name} describes an added token by other fields than those of a token: correct it")
    vocabulary = model.get("vocab") or {}
    texts = (str(entry[0]) if isinstance(entry, list) and entry else str(entry) for entry in vocabulary)
    longest = max(max(map(len, texts), default=0), max((len(str(t.get("content"))) for t in added), default=0))
    if longest > LONGEST_TOKEN:
        raise UserError(
            f"{name} has a token of {longest:,} characters, and no tokenizer needs more than {LONGEST_TOKEN:,}: every "
            "answer could become as long as it likes"
        )


def _steps(step: Any, name: str, place: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a sequence, also of sequences within it."""
    if step is None:
        return
    if not isinstance(step, Mapping) or depth > 8:
        raise UserError(f"{name} has a {place} that is no step, or too many within each other")
    lists = [step[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in step]
    if not lists:
        yield step
    for inner in lists:  # whichever of them the library takes
        if not isinstance(inner, list) or len(inner) > MOST_STEPS:
            raise UserError(f"{name} has a {place} of more than {MOST_STEPS} steps: give a tokenizer with fewer")
        for each in inner:
            yield from _steps(each, name, place, depth + 1)


def _check_growth(steps: list[Mapping[str, Any]], name: str, place: str) -> None:
    """Raise a `UserError` where steps could together make a text many times as long."""
    growth = 1.0
    for step in steps:
        written = str(step.get("content") or step.get("prepend") or "")
        pattern = _pattern(step.get("pattern"))
        if len(pattern) > LONGEST_PATTERN:
            raise UserError(f"{name} has a {place} with a pattern of {len(pattern):,} characters: give one without it")
        if isinstance(step.get("pattern"), Mapping) and "Regex" in step["pattern"] and can_take_forever(pattern):
            raise UserError(
                f"{name} has a {place} with the pattern {pattern[:60]!r}, which repeats what repeats: on some text it "
                "never ends: give a tokenizer without it"
            )
        if len(written) > LONGEST_TEXT:
            raise UserError(
                f"{name} has a {place} that writes {len(written):,} characters at once: give one without it"
            )
        if step.get("type") == "Replace":
            shortest = len(pattern) if isinstance(step.get("pattern"), Mapping) and "String" in step["pattern"] else 1
            growth *= max(1.0, len(written) / max(1, shortest))
        if growth > MOST_GROWTH:
            raise UserError(
                f"{name} has a {place} that can make a text {growth:,.0f} times as long: give one without it"
            )
    for step in steps:
        parts = [*_list(step.get("single")), *_list(step.get("pair"))]
        if len(parts) > MOST_STEPS:
            raise UserError(f"{name} has a {place} that adds {len(parts):,} tokens to every text: give one without it")


def can_take_forever(pattern: str) -> bool:
    """Whether a regular expression repeats, without bound, a group that itself repeats something without bound.

    The library that matches it tries every way to part a text between the two: of forty letters 2 to the fortieth.

    >>> can_take_forever("(a+)+$"), can_take_forever(r"\\d{1,3}(?=(?:\\d{3})*\\b)")
    (True, False)
    """
    inner = [False]  # of each open group: whether something in it repeats without bound
    at, closed = 0, False
    while at < len(pattern):
        character = pattern[at]
        unbounded = character in "+*" or re.match(r"\{\d*,\}", pattern[at:]) is not None
        if unbounded:
            if closed:
                return True
            inner[-1] = True
        closed = False
        if character == "\\":
            at += 1
        elif character == "[":
            at = _end_of_class(pattern, at)
        elif character == "(":
            inner.append(False)
        elif character == ")" and len(inner) > 1:
            repeats = inner.pop()
            inner[-1] |= repeats
            closed = repeats
        at += 1
    return False


def _end_of_class(pattern: str, at: int) -> int:
    """Where a class of characters ends that begins at `at`; classes may stand in classes."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return at


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _pattern(pattern: Any) -> str:
    return str(next(iter(pattern.values()), "")) if isinstance(pattern, Mapping) else str(pattern or "")


def _normaliser(step: Mapping[str, Any]) -> str:
    if step.get("type") == "Prepend":
        written = str(step.get("prepend"))
        return "" if SPACES.fullmatch(written) else f"writes {written[:40]!r} in front of every text"
    if step.get("type") == "Precompiled":
        return _map(step.get("precompiled_charsmap"))
    return _replaced(step)


def _decoder(step: Mapping[str, Any]) -> str:
    if (said := _written(step)) or step.get("type") != "Strip":
        return said or _replaced(step)
    content, counts = str(step.get("content")), [step.get(side) or 0 for side in ("start", "stop")]
    count = max((value for value in counts if isinstance(value, int)), default=0)
    return "" if SPACES.fullmatch(content) and count <= 2 else f"takes {content[:40]!r} away, {count} times"


def _written(step: Mapping[str, Any]) -> str:
    """A sentence where a mark within words, which is written as a blank or left out, is a letter."""
    for field in ("replacement", "suffix", "prefix"):
        mark = str(step.get(field) or "")
        if any(character.isalnum() for character in mark) and mark != "</w>":
            return f"takes {mark[:40]!r} out of every text, as the mark of a word"
    return ""


def _replaced(step: Mapping[str, Any]) -> str:
    """A sentence on a replacement of anything but white space by white space, or of quotation marks."""
    if step.get("type") != "Replace":
        return ""
    pattern, content = _pattern(step.get("pattern")), str(step.get("content", ""))
    spaces = re.fullmatch(r"[\s▁Ġ]*|(\\s|\\n|\\r|\\t|[ ▁()\[\]{},+*?0-9])+", pattern) is not None
    if (spaces and SPACES.fullmatch(content)) or QUOTES.get(pattern) == content:
        return ""
    return f"replaces {pattern[:60]!r} by {content[:60]!r}"


def _map(charsmap: Any) -> str:
    try:
        digest = hashlib.sha256(base64.b64decode(str(charsmap or ""), validate=True)).hexdigest()
    except (binascii.Error, ValueError):
        return "replaces characters by a map that cannot be read"
    known = not charsmap or digest in KNOWN_MAPS
    return "" if known else f"replaces characters by a map that is none of sentencepiece's own (sha256 {digest[:12]}…)"


def _splitter(step: Mapping[str, Any]) -> str:
    if step.get("type") == "Metaspace":
        return _written(step)
    pattern = _pattern(step.get("pattern"))
    spaces = step.get("type") == "Split" and not step.get("invert") and re.fullmatch(r"(\\s|[\s+*()▁])*", pattern)
    if step.get("behavior") == "Removed" and not spaces:
        but = "all but " if step.get("invert") else ""
        return f"takes {but}{pattern[:60]!r} out of every text"
    return ""


def _frame(step: Mapping[str, Any]) -> str:
    ends = [str(end[0]) for end in (step.get("sep"), step.get("cls")) if isinstance(end, list) and end]
    if words := [end for end in ends if WORD.fullmatch(end)]:
        return f"adds {', '.join(words)[:80]} to every text"
    if step.get("type") != "TemplateProcessing":
        return ""
    parts = _list(step.get("single"))
    if not any(isinstance(part, Mapping) and "Sequence" in part for part in parts):
        return "leaves every text out"
    added = [
        str(p["SpecialToken"].get("id"))
        for p in parts
        if isinstance(p, Mapping) and isinstance(p.get("SpecialToken"), Mapping)
    ]
    if len(added) > 2 or any(WORD.fullmatch(token) for token in added):
        return f"adds {', '.join(added)[:80]} to every text"
    return ""
