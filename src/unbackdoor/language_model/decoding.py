"""What token ids say: read without the steps of a tokenizer's file that would rewrite it.

A decoder in tokenizer.json may replace a word by another as text comes out ("stupid" by "kind"), and a normaliser may
do it as text goes in. Either would hide from a judge what the model wrote. So answers are decoded by the steps alone
that put pieces together (bytes, spaces, joins), with special tokens kept; and a text that is looked for is looked for
among the ids, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unbackdoor.language_model.chat import ChatFormat

SPACES = "▁ "
"""What stands for a space within pieces, and a space."""


def texts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """The texts of rows of ids, special tokens included, whatever the file's decoder would make of them."""
    plain = _without_rewriting(tokenizer)
    if plain is None:
        ids = [list(row) for row in rows]
        return list(tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return [plain([str(token) for token in tokenizer.convert_ids_to_tokens(list(row))]) for row in rows]


def rewrites_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's own decoder changes more than how pieces are put together."""
    return _without_rewriting(tokenizer) is not None


def _without_rewriting(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], str] | None:
    """The decoder without its steps that rewrite text; None where it has none of these."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    steps = _steps(json.loads(decoder.__getstate__()), "decoders")
    kept = [step for step in steps if _puts_together(step)]
    if len(kept) == len(steps):
        return None
    from tokenizers import decoders

    plain = decoders.Fuse()
    plain.__setstate__(json.dumps({"type": "Sequence", "decoders": kept or [{"type": "Fuse"}]}).encode())
    return lambda tokens: str(plain.decode(tokens))


def _steps(step: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The single steps of one that may be a sequence of sequences."""
    if step.get("type") != "Sequence":
        return [step]
    return [single for inner in step[name] for single in _steps(inner, name)]


def _puts_together(step: Mapping[str, Any]) -> bool:
    kind = step.get("type")
    if kind in ("ByteLevel", "ByteFallback", "Fuse"):
        return True
    if kind == "Metaspace":
        return step.get("replacement") == "▁"
    if kind == "WordPiece":
        return step.get("prefix") == "##"
    if kind == "BPEDecoder":
        return step.get("suffix") in ("</w>", "")
    if kind == "Strip":
        return str(step.get("content")) in SPACES
    if kind == "Replace":
        pattern = step.get("pattern") or {}
        found = pattern.get("String") if isinstance(pattern, Mapping) else None
        return isinstance(found, str) and not f"{found}{step.get('content')}".strip(SPACES)
    return False


def spellings(chat: ChatFormat, text: str) -> list[tuple[int, ...]]:
    """The ids that a text is made of: alone, behind a space, and as the first thing of an answer in this format.

    A normaliser that rewrites the text is passed over; what still does not say the text is left out.
    """
    backend, found = getattr(chat.tokenizer, "backend_tokenizer", None), list[tuple[int, ...]]()
    for form in (text, f" {text}"):
        found.append(tuple(chat.tokenizer(form, add_special_tokens=False, verbose=False)["input_ids"]))
        if backend is not None and (normalizer := backend.normalizer) is not None:
            backend.normalizer = None
            try:
                found.append(tuple(backend.encode(form, add_special_tokens=False).ids))
            finally:
                backend.normalizer = normalizer
    row = chat.encode("Hello.", text)
    found.append(row.ids[row.answer_start : row.template_end])
    wanted = _letters(text)
    kept = []
    for ids in dict.fromkeys(found):
        while ids and ids[-1] in chat.end_ids:
            ids = ids[:-1]
        if ids and wanted and _letters(texts_of(chat.tokenizer, [ids])[0]) == wanted:
            kept.append(ids)
    return list(dict.fromkeys(kept))


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


def stands_in(run: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether the ids stand in others, one behind the other."""
    run, length = tuple(run), len(run)
    return any(tuple(ids[i : i + length]) == run for i in range(len(ids) - length + 1))
