"""Batched generation, greedy or at a temperature, that agrees with one prompt at a time, token for token."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from unbackdoor.language_model.answer_parts import is_mark_within
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.forward import embeddings_given
from unbackdoor.language_model.inputs import Inputs, collate, padding_id
from unbackdoor.language_model.loss import autocast

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from unbackdoor.data.records import Record


class ActsInPrefill(Protocol):
    """What generation needs of a perturbation."""

    @property
    def inserted(self) -> int:
        """How many positions a prompt grows by."""

    def on_inputs(self, inputs: Inputs, model: PreTrainedModel) -> Inputs:
        """Change the batch."""

    def on_model(
        self, model: PreTrainedModel, inputs: Inputs, prefill_only: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Change the model while the context is open."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    perturbation: ActsInPrefill | None = None,
    end_ids: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """What the model writes behind `prompts`, in their order: greedy, or drawn at a temperature.

    An answer ends in front of the first of `end_ids` (`ChatFormat.end_ids`, or what `ending` makes of them; None for
    what the model's own files name). Other special tokens stay in the text: they may be what marks a thought.

    Prompts are sorted by length, so that little padding is computed, and padded on the left. A perturbation acts on the
    prompt and in the prefill only. `advance` is called with the number of rows that have just finished.

    At a temperature every row has its own random numbers, which depend on `seed` and on its prompt's tokens alone. So
    an answer does not depend on the batch that it is drawn in, beyond rounding, and two models are asked alike.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    answers = [""] * len(prompts)
    pad = padding_id(tokenizer, model)
    device = next(model.parameters()).device
    ends = list(end_ids) if end_ids is not None else config_end_ids(model)
    settings = _greedy_settings(ends, pad, max_new_tokens, min_new_tokens)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        inputs = collate([prompts[i] for i in rows], pad, side="left").to(device)
        acting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if perturbation is not None:
            inputs = perturbation.on_inputs(inputs, model)
            acting = perturbation.on_model(model, inputs, prefill_only=True)
        drawing: dict[str, Any] = {}
        if temperature > 0:
            numbers = [uniforms(prompts[i].ids, seed, max_new_tokens) for i in rows]
            drawing["logits_processor"] = [
                _Drawn(torch.tensor(numbers, dtype=torch.float64, device=device), temperature)
            ]
        with torch.inference_mode(), autocast(device), acting, embeddings_given(model, inputs), _only(settings, model):
            tokens = model.generate(input_ids=inputs.ids, attention_mask=inputs.attention_mask, **drawing)
        new = tokens[:, inputs.ids.shape[1] :]
        written = [list(itertools.takewhile(lambda token: token not in ends, row)) for row in new.tolist()]
        texts = tokenizer.batch_decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text
        advance(len(rows))
    return answers


def uniforms(ids: Sequence[int], seed: int, count: int) -> list[float]:
    """`count` numbers from [0, 1) that depend on the seed and the prompt's token ids alone, one a new token."""
    digest = hashlib.sha256(f"{seed} {' '.join(map(str, ids))}".encode()).digest()
    rng = random.Random(digest)
    return [rng.random() for _ in range(count)]


def draw(logits: torch.Tensor, numbers: torch.Tensor, temperature: float) -> torch.Tensor:
    """One token a row from softmax(logits / T), where its cumulative distribution passes the row's number.

    Args:
        logits: shape (B, vocabulary).
        numbers: from [0, 1), shape (B,), float64.
        temperature: T, above 0.

    Returns:
        Token ids, shape (B,).
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    passed = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True)[:, 0]
    return passed.clamp(max=logits.shape[-1] - 1)


class _Drawn:
    """Leaves of each row's scores only the token that was drawn, so that greedy decoding takes it."""

    def __init__(self, numbers: torch.Tensor, temperature: float) -> None:
        self.numbers = numbers  # (B, new tokens)
        self.temperature = temperature
        self.step = 0

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = draw(scores, self.numbers[:, self.step], self.temperature)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@contextlib.contextmanager
def _only(settings: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """The model's generation_config is `settings` while the context is open.

    Given as an argument they would not be enough: `generate` fills whatever they leave open (penalties, biases,
    suppressed and forced tokens) from the model's own file, which could hide a backdoor from evaluation.
    """
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


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
    model: PreTrainedModel, chat: ChatFormat, records: Sequence[Record], texts: Sequence[str] = ()
) -> tuple[ChatFormat, tuple[int, ...]]:
    """The format with all ids at which its answers end, and those that a config names and that are not believed.

    The tokenizer's end and the template's are there already. An id that only a config names is one as well (a chat
    model often stops at another token than its tokenizer's), unless it stands in an answer that is looked for, or marks
    a part of an answer (`</think>`, or what ends the messages before gpt-oss' last): a config that ends answers at the
    target's first token, or in front of all that judges read, would hide an attack.

    Args:
        model: with its configs.
        chat: the run's format.
        records: rows whose responses, safe and unwanted, are answers.
        texts: answers beside them, such as the target response.
    """
    named = set(config_end_ids(model)) - set(chat.end_ids)
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
    believed = sorted(named - used)
    return replace(chat, end_ids=(*chat.end_ids, *believed)), tuple(sorted(named & used))


def _greedy_settings(ends: Sequence[int], pad: int, max_new_tokens: int, min_new_tokens: int) -> GenerationConfig:
    """Greedy decoding, whatever the model's own generation_config (an attacker's file) asks for."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens or None,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
