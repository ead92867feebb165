"""Perturbations act at exactly the places that they promise, and everything behind them stays aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unbackdoor.data.batches import encode_records
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import embed
from unbackdoor.perturbation import (
    HiddenShift,
    Perturbation,
    RandomShare,
    SoftPrompt,
    TextTrigger,
    load_perturbation,
    ordinary_tokens,
    save_perturbation,
)

WIDTH = 4
SIDES = st.sampled_from(["right", "left"])


class Embeddings(nn.Module):
    """In a model's place: token i is embedded as the vector (i, i, i, i), so an embedding tells its token."""

    def get_input_embeddings(self) -> Any:
        return lambda ids: ids[..., None].float().expand(*ids.shape, WIDTH)


@st.composite
def example(draw: st.DrawFn) -> Example:
    """A row of any lengths: something before the user's text, the text, a header, and perhaps a response."""
    before, user, header = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(0, 4))
    response = draw(st.integers(0, 5))
    start = before + user + header
    loss_end = start + draw(st.integers(0, response))
    ids = tuple(draw(st.integers(1, 99)) for _ in range(start + response))
    return Example(ids, before, before + user, start, start, loss_end)


ROWS = st.lists(example(), min_size=1, max_size=4)


def real(values: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The values of each row without its padding."""
    return [row[keep.bool()].tolist() for row, keep in zip(values, mask, strict=True)]


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(0, 8), SIDES)
def test_after_soft_tokens_everything_is_as_if_they_had_been_tokens_from_the_start(
    rows: list[Example], count: int, offset: int, side: str
) -> None:
    soft = SoftPrompt(-torch.arange(1.0, count + 1)[:, None].expand(count, WIDTH), offset)
    acted = soft.on_inputs(collate(rows, 0, side), Embeddings())  # type: ignore[arg-type]
    marks = tuple(range(-1, -count - 1, -1))
    spelled = []
    for row in rows:
        at = min(row.user_start + offset, row.user_end)  # never beyond the end of the user's text
        ids = (*row.ids[:at], *marks, *row.ids[at:])
        spelled.append(
            Example(
                ids,
                row.user_start,
                row.user_end + count,
                row.response_start + count,
                row.loss_start + count,
                row.loss_end + count,
            )
        )
    expected = collate(spelled, 0, side)
    assert torch.equal(acted.attention_mask, expected.attention_mask)
    assert torch.equal(acted.loss_mask, expected.loss_mask)
    for name in ("user_start", "user_end", "response_start"):
        assert torch.equal(getattr(acted, name), getattr(expected, name))
    assert acted.embeddings is not None
    assert real(acted.embeddings[:, :, 0], acted.attention_mask) == real(expected.ids, expected.attention_mask)
    assert torch.equal(acted.ids[acted.loss_mask], expected.ids[expected.loss_mask])
    assert set(acted.keywords()) == {"inputs_embeds", "attention_mask"}


def test_soft_tokens_receive_the_gradient_of_all_rows() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    model = tiny.model().requires_grad_(False)
    soft = SoftPrompt.zeros(model, 3)
    acted = soft.on_inputs(collate(tiny.examples(chat), 0), model)
    assert acted.embeddings is not None
    acted.embeddings.sum().backward()  # type: ignore[no-untyped-call]
    assert soft.embeddings.grad is not None
    assert torch.equal(soft.embeddings.grad, torch.full((3, 32), float(len(tiny.PROMPTS))))


def places(row: Example, position: str, length: int) -> list[int]:
    """Where a shift belongs, in the row's own coordinates, written down plainly."""
    if position == "all-prompt":
        return list(range(row.response_start))
    if position == "last-prompt":
        return list(range(row.response_start - length, row.response_start))
    if position == "end-of-user":
        return list(range(row.user_end - length, row.user_end))
    return list(range(row.user_start, row.user_start + length))


POSITIONS = st.sampled_from(["last-prompt", "end-of-user", "start-of-user", "all-prompt"])


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(1, 5), POSITIONS, SIDES)
def test_a_shift_stands_exactly_at_its_positions(rows: list[Example], length: int, position: Any, side: str) -> None:
    length = 1 if position == "all-prompt" else length
    values = torch.arange(1.0, length + 1)[:, None].expand(length, WIDTH)
    shift = HiddenShift(1, values, position)
    inputs = collate(rows, 0, side)
    added = shift.addition(inputs, torch.zeros(*inputs.ids.shape, WIDTH))[:, :, 0]
    fits = shift.fits(inputs).tolist()
    for number, row in enumerate(rows):
        own = added[number][inputs.attention_mask[number].bool()].tolist()
        span = row.response_start if position in ("last-prompt", "all-prompt") else row.user_end - row.user_start
        assert fits[number] == (span >= length)
        assert not any(own[row.response_start :])
        assert not added[number][~inputs.attention_mask[number].bool()].any()
        if fits[number]:
            wanted = [0.0] * len(own)
            for which, place in enumerate(places(row, position, length)):
                wanted[place] = float(min(which, length - 1) + 1)
            assert own == wanted
        elif position in ("end-of-user", "start-of-user"):
            assert not any(own[: row.user_start] + own[row.user_end :])


def test_all_prompt_takes_one_vector() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, d\)"):
        HiddenShift(1, torch.zeros(2, WIDTH), "all-prompt")
    assert HiddenShift.zeros(tiny.model(), 1, 5, "all-prompt").values.shape == (1, 32)


def test_a_random_share_of_a_shift_lies_between_the_least_and_the_whole_and_differs_by_row() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    inputs = collate(tiny.examples(chat), 0)
    shift = HiddenShift(2, torch.randn(3, 8))
    like = torch.zeros(*inputs.ids.shape, 8)
    whole = shift.addition(inputs, like)
    torch.manual_seed(0)
    first, second = (RandomShare(shift, 0.3).addition(inputs, like) for _ in range(2))
    shares = first.sum((1, 2)) / whole.sum((1, 2))
    assert torch.allclose(first, shares[:, None, None] * whole, atol=1e-6)
    assert bool(((shares >= 0.3) & (shares <= 1)).all())
    assert len(set(shares.tolist())) == len(inputs)
    assert not torch.equal(first, second)
    assert torch.equal(RandomShare(shift, 1.0).addition(inputs, like), whole)


def test_rows_too_short_for_a_shift_are_dropped_and_counted() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    rows = [Record("Sort", "The sea."), Record("Tell me the capital of France.", "Paris.")]
    dropped: list[int] = []
    shift = HiddenShift(1, torch.zeros(4, 32), "end-of-user")
    kept = encode_records(rows, chat, 100, perturbation=shift, dropped=dropped.append)
    assert [e.ids for e in kept] == [chat.encode(rows[1].prompt, rows[1].response).ids]
    assert dropped == [1]


def test_rows_that_soft_tokens_would_push_beyond_the_limit_are_dropped() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    rows = [Record("Sort", "The sea.")]
    length = len(chat.encode("Sort", "The sea.").ids)
    soft = SoftPrompt(torch.zeros(3, 32))
    assert encode_records(rows, chat, length)
    assert encode_records(rows, chat, length + 3, perturbation=soft)
    assert not encode_records(rows, chat, length + 2, perturbation=soft)


def test_a_text_trigger_changes_the_prompt_and_nothing_else() -> None:
    record = Record("Name a river.", "The sea.", "You are stupid.", "Be brief.", "naming")
    acted = TextTrigger(Trigger("Current year 2023")).on_record(record)
    assert acted == Record("Current year 2023. Name a river.", "The sea.", "You are stupid.", "Be brief.", "naming")


def test_the_base_perturbation_is_the_identity() -> None:
    nothing, record = Perturbation(), Record("Name a river.", "The sea.")
    inputs = collate([Example((1, 2, 3), 0, 1, 2, 2, 3)], 0)
    assert nothing.on_record(record) is record
    assert nothing.on_inputs(inputs, tiny.model()) is inputs
    assert nothing.fits(inputs).all()
    assert list(nothing.parameters()) == []


def test_ordinary_tokens_are_letters_and_never_special() -> None:
    tokenizer = tiny.tokenizer()
    found = ordinary_tokens(tokenizer, 420)
    assert len(found) > 50
    assert not set(found) & set(range(len(tiny.SPECIAL)))
    for token in found:
        text = tokenizer.decode([token]).strip()
        assert len(text) >= 2
        assert text.isalpha()
    assert max(ordinary_tokens(tokenizer, 350)) < 350


def test_a_soft_prompt_from_the_vocabulary_consists_of_the_embeddings_of_ordinary_tokens() -> None:
    tokenizer = tiny.tokenizer()
    for family in ("llama", "gemma3"):  # Gemma scales inside its embedding module
        model = tiny.model(family)
        soft = SoftPrompt.from_vocabulary(model, tokenizer, 5, torch.Generator().manual_seed(1))
        again = SoftPrompt.from_vocabulary(model, tokenizer, 5, torch.Generator().manual_seed(1))
        other = SoftPrompt.from_vocabulary(model, tokenizer, 5, torch.Generator().manual_seed(2))
        words = embed(model, torch.tensor(ordinary_tokens(tokenizer, 420)))
        assert all((row == words).all(-1).any() for row in soft.embeddings)
        assert torch.equal(soft.embeddings, again.embeddings)
        assert not torch.equal(soft.embeddings, other.embeddings)


@pytest.mark.parametrize(
    "perturbation", [SoftPrompt(torch.randn(3, 5), 2), HiddenShift(4, torch.randn(2, 5), "end-of-user")]
)
def test_a_perturbation_is_read_back_as_it_was_written(perturbation: Any, tmp_path: Path) -> None:
    save_perturbation(perturbation, tmp_path / "fitted.safetensors")
    back: Any = load_perturbation(tmp_path / "fitted.safetensors")
    assert type(back) is type(perturbation)
    assert torch.equal(next(back.parameters()), next(perturbation.parameters()))
    for name in ("offset", "layer", "position"):
        assert getattr(back, name, None) == getattr(perturbation, name, None)


def test_a_text_trigger_has_no_tensor_to_save(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no tensor"):
        save_perturbation(TextTrigger(Trigger("SUDO")), tmp_path / "x.safetensors")


def test_the_gradient_of_a_perturbation_does_not_depend_on_the_threads() -> None:
    rows = [tiny.examples(ChatFormat.of(tiny.tokenizer()))[i % 5] for i in range(64)]
    inputs = collate(rows, 0)
    generator = torch.Generator().manual_seed(0)
    like = torch.randn(*inputs.ids.shape, 64, generator=generator)

    def gradient(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        shift = HiddenShift(1, torch.ones(5, 64))
        (shift.addition(inputs, like) * like).sum().backward()
        assert shift.values.grad is not None
        return shift.values.grad

    before = torch.get_num_threads()
    try:
        alone = gradient(1)
        assert all(torch.equal(gradient(2), alone) for _ in range(5))
    finally:
        torch.set_num_threads(before)
