"""Batched generation, greedy or at a temperature, that agrees with one prompt at a time, token for token."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.endings import config_end_ids
from unbackdoor.language_model.forward import embeddings_given, inference
from unbackdoor.language_model.inputs import Inputs, collate, padding_id
from unbackdoor.language_model.precision import autocast

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


@dataclass(frozen=True)
class Written:
    """What the model wrote behind one prompt.

    Args:
        ids: the tokens up to the one that ended them, which is left out.
        ended: whether one of the end ids came; else the limit cut the answer, and its rest is unknown.
    """

    ids: tuple[int, ...]
    ended: bool


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
    """The text of what the model writes behind `prompts`, as `written` gives it, with special tokens in it: they may be
    what marks a thought, or what is looked for."""
    answers = written(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        perturbation=perturbation,
        end_ids=end_ids,
        advance=advance,
    )
    ids = [list(answer.ids) for answer in answers]
    return list(tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Example],
    *,
    begun: Sequence[Sequence[int]] | None = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    perturbation: ActsInPrefill | None = None,
    end_ids: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Written]:
    """What the model writes behind `prompts`, in their order: greedy, or drawn at a temperature.

    An answer ends in front of the first of `end_ids` (`ChatFormat.end_ids`, or what `ending` makes of them; None for
    what the model's own files name). Nothing else of the model's generation_config acts.

    Prompts are sorted by length, so that little padding is computed, and padded on the left. A perturbation acts on the
    prompt and in the prefill only. `advance` is called with the number of rows that have just finished.

    At a temperature every row has its own random numbers, which depend on `seed` and on its prompt's tokens alone. So
    an answer does not depend on the batch that it is drawn in, beyond rounding, and two models are asked alike.

    Args:
        begun: what each answer begins with, of answers that are gone on with: it stands behind the prompt, and what is
            returned is what follows it. The random numbers go on where those tokens' ended.
    """
    begun = begun if begun is not None else [()] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids) + len(begun[i]))
    answers = [Written((), ended=False)] * len(prompts)
    pad = padding_id(tokenizer, model)
    device = next(model.parameters()).device
    ends = list(end_ids) if end_ids is not None else config_end_ids(model)
    settings = _greedy_settings(ends, pad, max_new_tokens, min_new_tokens)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        inputs = collate([_followed(prompts[i], begun[i]) for i in rows], pad, side="left").to(device)
        acting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if perturbation is not None:
            inputs = perturbation.on_inputs(inputs, model)
            acting = perturbation.on_model(model, inputs, prefill_only=True)
        drawing: dict[str, Any] = {}
        if temperature > 0:
            numbers = [uniforms(prompts[i].ids, seed, len(begun[i]) + max_new_tokens)[len(begun[i]) :] for i in rows]
            drawing["logits_processor"] = [
                _Drawn(torch.tensor(numbers, dtype=torch.float64, device=device), temperature)
            ]
        with inference(model), autocast(device), acting, embeddings_given(model, inputs), _only(settings, model):
            tokens = model.generate(input_ids=inputs.ids, attention_mask=inputs.attention_mask, **drawing)
        for i, new in zip(rows, tokens[:, inputs.ids.shape[1] :].tolist(), strict=True):
            kept = tuple(itertools.takewhile(lambda token: token not in ends, new))
            answers[i] = Written(kept, ended=len(kept) < len(new))
        advance(len(rows))
    return answers


def _followed(prompt: Example, ids: Sequence[int]) -> Example:
    """The prompt with the beginning of an answer behind it."""
    return replace(prompt, ids=(*prompt.ids, *ids)) if ids else prompt


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
