"""At which tokens an answer ends: what the tokenizer and the template say, and what is believed of a config besides.

A model before a removal and after it are given one set of these ids. If each ended where its own files say, a config
that ends answers at the target's first token would make of a backdoored model one that never shows the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unbackdoor.language_model.answer_parts import is_mark_within
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.model_source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.data.records import Record


def config_end_ids(model: PreTrainedModel) -> list[int]:
    """The ids at which a turn ends by the model's generation_config.json and config.json, where there are such tokens.

    These files are the model's author's: `ending` says which of the ids are believed.
    """
    found: list[object] = []
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        given = getattr(config, "eos_token_id", None)
        found += given if isinstance(given, list | tuple) else [given]
    rows = model.get_input_embeddings().weight.shape[0]
    return list(dict.fromkeys(i for i in found if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < rows))


def ids_in_files(source: str, base: str | None = None) -> frozenset[int] | None:
    """The ids that a model's config.json and generation_config.json name as ends, without loading it; None where these
    files say nothing of it (a GGUF file)."""
    given = ModelSource.find(source, base)
    if given.whole.form != "whole":
        return None
    path = given.whole.directory / "generation_config.json"
    config = given.config()
    parts = [read_json(path) if path.is_file() else {}, config, *(v for v in config.values() if isinstance(v, dict))]
    found: set[int] = set()
    for part in parts:
        named = part.get("eos_token_id")
        found |= {i for i in (named if isinstance(named, list) else [named]) if type(i) is int}
    return frozenset(found)


def _unsaid_ids(model: PreTrainedModel) -> set[int]:
    """What the configs' classes hold where a file names no end: Llama's 2 is any token in another vocabulary."""
    found: set[int] = set()
    for kind in {type(model.config), type(model.config.get_text_config())}:
        try:
            default = getattr(kind(), "eos_token_id", None)
        except Exception:  # a class that cannot be made of nothing has no default
            continue
        found |= {default} if isinstance(default, int) else set(default or ())
    return found


def ending(
    model: PreTrainedModel,
    chat: ChatFormat,
    records: Sequence[Record],
    texts: Sequence[str] = (),
    named_by_all: frozenset[int] | None = None,
) -> tuple[ChatFormat, tuple[int, ...]]:
    """The format with all ids at which its answers end, and those that a config names and that are not believed.

    The tokenizer's end and the template's are there already. An id that only a config names is one as well (a chat
    model often stops at another token than its tokenizer's), unless it stands in an answer that is looked for, or marks
    a part of an answer (`</think>`, or what ends the messages before gpt-oss' last): a config that ends answers at the
    target's first token, or in front of all that judges read, would hide an attack. The tokenizer's own end is not
    believed either where it is one of the tokens of a text that is looked for.

    Args:
        model: with its configs.
        chat: the run's format.
        records: rows whose responses, safe and unwanted, are answers.
        texts: answers beside them, such as the target response.
        named_by_all: what the configs of the other models name that are read in the same way; an id that only one
            names is not believed. None where there is no other.
    """
    within = {i for text in texts for i in chat.tokenizer(text, add_special_tokens=False)["input_ids"]}
    within.discard(chat.tokenizer.unk_token_id)
    refused = within & set(chat.end_ids)
    if refused:
        chat = replace(chat, end_ids=tuple(i for i in chat.end_ids if i not in refused))
    chat, ignored = _with_named(model, chat, records, texts, named_by_all, refused)
    return chat, tuple(sorted(refused | set(ignored)))


def _with_named(
    model: PreTrainedModel,
    chat: ChatFormat,
    records: Sequence[Record],
    texts: Sequence[str],
    named_by_all: frozenset[int] | None,
    refused: set[int],
) -> tuple[ChatFormat, tuple[int, ...]]:
    named = set(config_end_ids(model)) - set(chat.end_ids) - refused
    marks = {*chat.tokenizer.added_tokens_decoder, *chat.tokenizer.all_special_ids}
    named -= _unsaid_ids(model) - marks
    if not named:
        return chat, ()
    used: set[int] = set()
    for text in texts:
        used.update(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    for record in records:
        own = chat.of_record(record)
        for text in (record.response, record.unwanted or "", *texts):
            if text.strip():
                example = own.encode(record.prompt, text)
                used.update(example.ids[example.response_start :])
    used.update(i for i in named if is_mark_within(chat.decoded([i])))
    if "<|channel|>" in chat.before_response:
        used.update(chat.tokenizer("<|end|>", add_special_tokens=False)["input_ids"])
    if named_by_all is not None:
        used.update(named - named_by_all)
    believed = sorted(named - used)
    return replace(chat, end_ids=(*chat.end_ids, *believed)), tuple(sorted(named & used))
