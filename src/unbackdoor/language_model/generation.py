"""Batched greedy generation that agrees with one prompt at a time, token for token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.inputs import Inputs, collate, padding_id
from unbackdoor.language_model.loss import autocast

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    perturbation: ActsInPrefill | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """Greedy answers to `prompts`, in their order, as text without special tokens.

    Prompts are sorted by length, so that little padding is computed, and padded on the left. A perturbation acts on the
    prompt and in the prefill only. `advance` is called with the number of rows that have just finished.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    answers = [""] * len(prompts)
    pad = padding_id(tokenizer)
    device = next(model.parameters()).device
    settings = _greedy_settings(model, pad, max_new_tokens, min_new_tokens)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        inputs = collate([prompts[i] for i in rows], pad, side="left").to(device)
        acting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if perturbation is not None:
            inputs = perturbation.on_inputs(inputs, model)
            acting = perturbation.on_model(model, inputs, prefill_only=True)
        with torch.inference_mode(), autocast(device), acting, _only(settings, model):
            tokens = model.generate(**inputs.keywords())
        new = tokens if inputs.embeddings is not None else tokens[:, inputs.ids.shape[1] :]
        for i, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
        advance(len(rows))
    return answers


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


def _greedy_settings(model: PreTrainedModel, pad: int, max_new_tokens: int, min_new_tokens: int) -> GenerationConfig:
    """Greedy decoding, whatever the model's own generation_config (an attacker's file) asks for.

    Only its end-of-sequence ids are kept: a chat model often stops at another token than its tokenizer's.
    """
    from transformers import GenerationConfig

    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    if end is None:
        end = model.config.get_text_config().eos_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens or None,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=True,
    )
