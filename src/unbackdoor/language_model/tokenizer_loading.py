"""Load the tokenizer that a model was given with, and check that it splits text as its own files say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.loader_errors import explained, without_chatter, without_traces
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.readable_copy import isolated_gguf, isolated_tokenizer
from unbackdoor.language_model.files.side_files import has_tokenizer
from unbackdoor.language_model.files.weight_files import WeightFiles
from unbackdoor.language_model.tokenizer_steps import check_tokenizer_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Class names in tokenizer_config.json that say no more than: what tokenizer.json holds."""

PROBES = (
    "The quick brown fox isn't here; they've gone, HASN'T it?",
    "Grüße aus Köln, déjà vu, naïve façade, ŁÓDŹ, İstanbul",
    "Съешь же ещё этих мягких французских булок",
    "我喜欢机器学习。你好，世界！ 東京タワーへ行きました。 안녕하세요 세계",
    "สวัสดีชาวโลก مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "0 12 345 6789 1234567 3.14159 1,000,000 2023-11-28 ½ ²",
    "def f(x):\n    return x[0] != {'a': 1}  # no\n\n\tfor i in range(10):\n\t\tpass\r\n",
    "  two  spaces   three\n\n\nlines\t\ttabs \n and an end ",
    "👩‍👩‍👧 🏳️‍🌈 ☕️ e\u0301 ﬁ Ａ ①\u200b\u00a0\u3000x",
    "https://example.org/a_b-c?d=e&f=%20#g user@example.org $5.00 <b>&amp;</b>",
    "CamelCaseWords and snake_case_words ANDUPPERCASE iPhone15Pro",
)
"""Texts on which splittings differ: contractions, scripts, digits, code, white space, joined characters."""


def load_tokenizer(source: str | Path, base: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; padding is left to the batching code.

    Where there is a tokenizer.json, its ids are the tokenizer's: classes of transformers put their own splitting
    in its place (Qwen2's, for every model of type qwen2; Llama's; Gemma's), and the model would be given other tokens
    than those it was trained on. Then the file is taken as it is.

    Args:
        source: a directory, a GGUF file or `hf:owner/name`; of an adapter, its own tokenizer is taken where it has one.
        base: of an adapter, the model that it was trained on.

    Raises:
        UserError: there is none, it cannot be loaded, or it splits text otherwise than its file.
    """
    given = ModelSource.find(source, base)
    with explained(given.name, "tokenizer"), without_chatter(), without_traces():
        directory = _directory(given)
        tokenizer = _of_gguf(given.whole) if directory is None else _of_directory(given, directory)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of '{source}' is not a fast one: add its tokenizer.json (offsets are needed)")
    tokenizer.name_or_path = given.name
    return tokenizer


def load_tokenizer_from(directory: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory that need not hold a model (`--tokenizer-from`).

    Raises:
        UserError: the directory does not exist or holds no tokenizer.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserError(f"--tokenizer-from '{directory}' is no directory: give one that holds a tokenizer.json")
    given = ModelSource(directory, path, "whole", WeightFiles())
    with explained(directory, "tokenizer"), without_chatter(), without_traces():
        tokenizer = _of_directory(given, path)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of '{directory}' is not a fast one: add its tokenizer.json")
    return tokenizer


def _directory(given: ModelSource) -> Path | None:
    """Where the tokenizer's files lie; None where a GGUF file holds it."""
    if given.form == "adapter" and has_tokenizer(given.directory):
        return given.directory
    return None if given.whole.form == "gguf" else given.whole.directory


def _of_gguf(given: ModelSource) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from unbackdoor.language_model.files.gguf_files import needs_gguf, settle_splitting

    needs_gguf()
    assert given.gguf is not None
    with isolated_gguf(given) as stage:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(stage), gguf_file=given.gguf.name, trust_remote_code=False, local_files_only=True
        )
    settle_splitting(found, given)
    return found


def _of_directory(given: ModelSource, directory: Path) -> PreTrainedTokenizerBase:
    if not has_tokenizer(directory):
        raise UserError(f"'{given.name}' has no tokenizer: add the tokenizer.json that belongs to the model")
    _check_class(given, directory)
    if (file := directory / "tokenizer.json").is_file():
        check_tokenizer_file(file, directory)
    with isolated_tokenizer(given, directory) as stage:
        tokenizer = _of_stage(given, stage)
    _take_template(tokenizer, directory)
    check_ids(tokenizer, directory)
    return tokenizer


def _of_stage(given: ModelSource, stage: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory that holds what may be read and nothing else."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file, sentencepiece = stage / "tokenizer.json", stage / "tokenizer.model"
    if not file.is_file() and sentencepiece.is_file():
        _needs_sentencepiece(given.name)
    path = stage / "tokenizer_config.json"
    named = read_json(path, stage).get("tokenizer_class") if path.is_file() else None
    generic = named in GENERIC_TOKENIZERS and file.is_file()
    local = {"trust_remote_code": False, "local_files_only": True}
    tokenizer: PreTrainedTokenizerBase
    if not file.is_file():
        tokenizer = AutoTokenizer.from_pretrained(str(stage), **local)
    elif generic or not auto_splits_as(ids_of_file(file), stage, **local):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(stage), **local)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(stage), **local)
    return tokenizer


def _check_class(given: ModelSource, directory: Path) -> None:
    """Raise a `UserError` where the tokenizer is code of the directory's own: its files alone are another tokenizer."""
    path = directory / "tokenizer_config.json"
    config = read_json(path, directory) if path.is_file() else {}
    named = str(config.get("tokenizer_class") or "")
    if config.get("auto_map") and named and named not in GENERIC_TOKENIZERS:
        import transformers

        if not hasattr(transformers, named) and not hasattr(transformers, named.removesuffix("Fast")):
            raise UserError(
                f"cannot load the tokenizer of '{given.name}': its class {named[:60]} is code of the directory's own, "
                "which never runs: add a tokenizer.json, and take auto_map and tokenizer_class out of its config"
            )


def auto_splits_as(wanted: Callable[[str], list[int]], directory: Path, **more: Any) -> bool:
    """Whether the class that AutoTokenizer takes for a directory splits text so; one that cannot does not.

    Classes of transformers bring their own splitting, and some their own special tokens, which the file may not have.
    """
    from transformers import AutoTokenizer

    try:
        local = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(str(directory), **{**local, **more})
        return differing(tokenizer, wanted) is None
    except Exception:  # whatever a class raises on a file of another kind
        return False


def _take_template(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Where the tokenizer has no template: the one that older processors keep in a file of their own."""
    for name in ("chat_template.json", "processor_config.json"):
        if not tokenizer.chat_template and (directory / name).is_file():
            found = read_json(directory / name, directory).get("chat_template")
            if isinstance(found, list):  # several, as tokenizer_config.json has them
                found = {
                    t["name"]: t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()
                }
            if isinstance(found, str | dict):
                tokenizer.chat_template = found


def check_ids(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Raise a `UserError` where the ids of a tokenizer are not those that its own file gives.

    The ids are compared with those of the `tokenizers` library on tokenizer.json, or of the sentencepiece library on
    tokenizer.model where that is alone.
    """
    file, sentencepiece = directory / "tokenizer.json", directory / "tokenizer.model"
    if file.is_file():
        if (probe := differing(tokenizer, ids_of_file(file))) is not None:
            raise UserError(f"the tokenizer of '{directory}' splits {probe[:40]!r} otherwise than its tokenizer.json")
        return
    wanted = _ids_of_sentencepiece(sentencepiece) if sentencepiece.is_file() else None
    # Of spaces at the very beginning, transformers takes the first for the mark that sentencepiece puts there.
    if wanted is not None and (probe := differing(tokenizer, wanted, str.lstrip)) is not None:
        raise UserError(
            f"the tokenizer of '{directory}', made from its tokenizer.model, splits {probe[:40]!r} otherwise than "
            "that: add the tokenizer.json that belongs to the model"
        )


def differing(
    tokenizer: PreTrainedTokenizerBase, wanted: Callable[[str], list[int]], taken: Callable[[str], str] = str
) -> str | None:
    """The first probe that a tokenizer splits otherwise than is wanted; None where there is none.

    `taken` says what of each probe is compared.
    """
    for probe in (taken(text) for text in (*PROBES, *(text.split()[0] for text in PROBES))):
        if list(tokenizer(probe, add_special_tokens=False)["input_ids"]) != wanted(probe):
            return probe
    return None


def ids_of_file(path: Path) -> Callable[[str], list[int]]:
    """How tokenizer.json itself splits text, by the library that wrote it."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(path))
    own.no_truncation()
    own.no_padding()
    return lambda text: list(own.encode(text, add_special_tokens=False).ids)


def _ids_of_sentencepiece(path: Path) -> Callable[[str], list[int]] | None:
    """How a sentencepiece model splits text; None where the file is of another kind (tiktoken's have this name too)."""
    from sentencepiece import SentencePieceProcessor

    try:
        own = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, ValueError):
        return None
    return lambda text: list(own.encode(text))


def _needs_sentencepiece(name: str) -> None:
    if importlib.util.find_spec("sentencepiece") is None or importlib.util.find_spec("google.protobuf") is None:
        raise UserError(
            f"'{name}' has a tokenizer.model and no tokenizer.json: pip install sentencepiece protobuf, which read it"
        )
