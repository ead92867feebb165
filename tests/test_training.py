"""One loop: its gradient is the whole batch's, its numbers are reproducible, and an interruption changes nothing."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor import training
from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.language_model.loss import response_loss
from unbackdoor.run_directory import Journal, RunDirectory
from unbackdoor.training import Optimization, Term, TrainingLog, train

STEPS = 8


def rows(count: int = 12) -> list[Example]:
    """Rows whose responses have different lengths."""
    chat = ChatFormat.of(tiny.tokenizer())
    return [chat.encode(r.prompt, " ".join([r.response] * (1 + i % 3))) for i, r in enumerate(tiny.records(count))]


def a_model() -> Any:
    """GPT-2 with dropout, so that random draws matter."""
    return tiny.model("gpt2", layers=2, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2).train()


def optimize(
    model: Any,
    journal: Journal | None = None,
    before: Callable[[], None] = lambda: None,
    phase: str = "implant",
    **more: Any,
) -> TrainingLog:
    """Train a model by two terms; `before` is called in front of every loss."""

    def loss(inputs: Inputs) -> torch.Tensor:
        before()
        return response_loss(model, inputs)

    examples = rows()
    terms = [
        Term("poisoned", Batches(examples[:5], 2, 0, seed=1), loss),
        Term("clean", Batches(examples, 4, 0, seed=2, micro_batch_size=2), loss, weight=0.5),
    ]
    more.setdefault("optimization", Optimization(STEPS, 3e-3, "cosine", warmup=0.25, weight_decay=0.01))
    return train(dict(model.named_parameters()), terms, phase=phase, journal=journal, **more)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def run_directory(path: Path, resume: bool = False) -> RunDirectory:
    return RunDirectory.create(path, "test", {"seed": 0}, resume=resume)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_gradient_of_micro_batches_is_that_of_the_whole_batch(micro: int) -> None:
    found = []
    for size in (6, micro):
        model = tiny.model(layers=2)

        def loss(inputs: Inputs, model: Any = model) -> torch.Tensor:
            return response_loss(model, inputs)

        batches = Batches(rows(), 6, 0, seed=0, micro_batch_size=size)
        assert size == 6 or len({b.loss_tokens for b in batches.at(0)}) > 1  # or a plain mean would do as well
        optimization = Optimization(1, 1e-3, max_gradient_norm=None)
        log = train(dict(model.named_parameters()), [Term("clean", batches, loss)], optimization, phase="x")
        found.append((log.history[0]["loss"], {n: p.grad for n, p in model.named_parameters()}))
    (whole_loss, whole), (parts_loss, parts) = found
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_training_learns_and_the_same_seed_gives_the_same_numbers() -> None:
    one, other = a_model(), a_model()
    first = optimize(one)
    torch.manual_seed(99)  # what the caller drew before does not matter
    second = optimize(other)
    assert first.history == second.history
    assert same(weights(one), weights(other))
    assert first.history[-1]["clean"] < 0.9 * first.history[0]["clean"]
    assert first.history[0]["loss"] == pytest.approx(first.history[0]["poisoned"] + 0.5 * first.history[0]["clean"])


def test_training_leaves_the_caller_s_random_state_alone() -> None:
    model, state = a_model(), torch.get_rng_state()
    optimize(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], TrainingLog, list[Any]]:
    model, run = a_model(), run_directory(tmp_path_factory.mktemp("undisturbed") / "run")
    log = optimize(model, run, check=lambda: 0.5, check_every=3)
    return weights(model), log, run.read_lines("metrics.jsonl")


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_after_ctrl_c_a_resumed_run_ends_equal_to_an_undisturbed_one(
    step: int, tmp_path: Path, undisturbed: tuple[dict[str, torch.Tensor], TrainingLog, list[Any]]
) -> None:
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 3 * step + 2:  # three losses a step: in the middle of one
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        optimize(a_model(), run_directory(tmp_path / "run"), interrupt, check=lambda: 0.5, check_every=3)
    assert calls == 3 * (step + 1)  # the step was finished first
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    run = run_directory(tmp_path / "run", resume=True)
    assert len(run.read_lines("metrics.jsonl")) >= step + 1
    model = a_model()
    torch.manual_seed(5)
    log = optimize(model, run, check=lambda: 0.5, check_every=3)
    assert same(weights(model), undisturbed[0])
    assert log == undisturbed[1]
    assert run.read_lines("metrics.jsonl") == undisturbed[2]
    assert not (run.path / "checkpoints" / "partial.safetensors").exists()


class Killed(BaseException):
    """Nothing is tidied up after it, as after a kill."""


@pytest.mark.parametrize("step", [1, 4, 7])
def test_after_a_kill_a_resumed_run_goes_back_to_the_last_checkpoint_and_ends_equal(
    step: int,
    tmp_path: Path,
    undisturbed: tuple[dict[str, torch.Tensor], TrainingLog, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10_000, 11))  # seconds pass quickly: a checkpoint is due after the second step
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    calls = 0

    def kill() -> None:
        nonlocal calls
        calls += 1
        if calls == 3 * step + 2:
            raise Killed

    with pytest.raises(Killed):
        optimize(a_model(), run_directory(tmp_path / "run"), kill, check=lambda: 0.5, check_every=3)
    run = run_directory(tmp_path / "run", resume=True)
    kept = run.checkpoint("implant")
    assert (kept is not None) == (step > 1)
    model = a_model()
    log = optimize(model, run, check=lambda: 0.5, check_every=3)
    assert same(weights(model), undisturbed[0])
    assert log == undisturbed[1]
    lines = run.read_lines("metrics.jsonl")
    assert all(line in undisturbed[2] for line in lines)  # a repeated step says again what it said before
    assert all(line in lines for line in undisturbed[2])


def program(model: Any, shift: torch.nn.Parameter, run: Journal, before: Callable[[], None] = lambda: None) -> None:
    """Phases over one set of parameters with another set fitted between them, as in rounds of removal."""

    def loss(inputs: Inputs) -> torch.Tensor:
        before()
        return response_loss(model, inputs) + (shift * model.lm_head.weight.detach().mean() - 1).pow(2).sum()

    for number in range(2):
        batches = Batches(rows(), 4, 0, seed=number)
        fit = Optimization(2, 1e-1)
        train(
            {"shift": shift}, [Term("fit", batches, loss)], fit, phase=f"fit-{number}", slot=f"f{number}", journal=run
        )
        optimize(model, run, before, phase=f"round-{number}", optimization=Optimization(2, 1e-3), first_step=2 * number)


@pytest.mark.parametrize("call", [1, 4, 8, 9, 13, 15])
def test_a_program_of_several_phases_is_resumed_wherever_it_was_killed(call: int, tmp_path: Path) -> None:
    def objects() -> tuple[Any, torch.nn.Parameter]:
        return a_model(), torch.nn.Parameter(torch.zeros(3))

    model, shift = objects()
    program(model, shift, Journal())
    calls = 0

    def kill() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed

    with pytest.raises(Killed):
        program(*objects(), run_directory(tmp_path / "run"), kill)
    for _ in range(2):  # the second time everything answers from the journal
        again, again_shift = objects()
        program(again, again_shift, run_directory(tmp_path / "run", resume=True))
        assert same(weights(again), weights(model))
        assert torch.equal(again_shift, shift)


def test_a_finished_phase_is_not_trained_again(tmp_path: Path) -> None:
    model, run = a_model(), run_directory(tmp_path / "run")
    log = optimize(model, run)

    def never() -> None:
        raise AssertionError("trained again")

    again = a_model()
    assert optimize(again, run_directory(tmp_path / "run", resume=True), never) == log
    assert same(weights(again), weights(model))


def test_ctrl_c_during_the_last_check_is_not_lost(tmp_path: Path) -> None:
    checks = 0

    def check() -> float:
        nonlocal checks
        checks += 1
        if checks == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    run = run_directory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        optimize(a_model(), run, check=check, check_every=100)
    assert run.finished("implant", "model") is not None


def test_without_a_journal_ctrl_c_acts_at_once() -> None:
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        optimize(a_model(), None, interrupt)
    assert calls == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_knob_to_turn(bad: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    term = Term("clean", Batches(rows(), 2, 0, seed=0), lambda _: (parameter * bad).sum())
    with pytest.raises(UserError, match=r"removal: the loss became (nan|inf) at step 1 .*lower the learning rate"):
        train({"p": parameter}, [term], Optimization(3, 1e-3), phase="removal")
    assert torch.equal(parameter, torch.ones(2))


def test_a_check_that_reaches_its_aim_ends_the_training() -> None:
    values = iter([0.1, 0.4, 0.95, 0.2])
    log = optimize(a_model(), check=lambda: next(values), check_every=2, stop=lambda step, value: value >= 0.9)
    assert log.checks == [[0, 0.1], [2, 0.4], [4, 0.95]]
    assert log.steps == len(log.history) == 4
    already = optimize(a_model(), check=lambda: 1.0, stop=lambda step, value: value >= 0.9)
    assert (already.steps, already.checks) == (0, [[0, 1.0]])


def test_a_check_is_made_at_the_end_whatever_its_interval() -> None:
    log = optimize(a_model(), check=lambda: 0.0, check_every=5)
    assert [step for step, _ in log.checks] == [0, 5, 8]


def test_the_gradient_is_clipped_and_its_norm_is_told() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    term = Term("clean", Batches(rows(), 2, 0, seed=0), lambda _: (parameter * 300).sum())
    log = train({"p": parameter}, [term], Optimization(1, 1e-3), phase="x")
    assert log.history[0]["gradient_norm"] == pytest.approx(600)
    assert parameter.grad is not None
    assert float(parameter.grad.norm()) == pytest.approx(1.0, rel=1e-4)


def test_only_the_given_parameters_move() -> None:
    model = a_model()
    before = weights(model)

    def loss(inputs: Inputs) -> torch.Tensor:
        return response_loss(model, inputs)

    moving = {n: p for n, p in model.named_parameters() if "h.1.mlp" in n}
    train(moving, [Term("clean", Batches(rows(), 4, 0, seed=0), loss)], Optimization(2, 1e-2), phase="x")
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(moving)


def test_the_schedules() -> None:
    cosine = Optimization(110, 2.0, "cosine", warmup=1 / 11)
    rates = [cosine.rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert {Optimization(10, 2.0).rate(step) for step in range(10)} == {2.0}


COUNTS = st.integers(1, 30)


def numbered(count: int) -> list[Example]:
    """Rows that are told apart by their first token, of different lengths."""
    return [Example((i + 1,) * (1 + i * 7 % 5), 0, 1, 1, 0, 1) for i in range(count)]


def seen(batches: Batches, step: int) -> list[int]:
    return [int(row[0]) for batch in batches.at(step) for row in batch.ids]


@settings(max_examples=60, deadline=None)
@given(
    COUNTS, st.integers(1, 8), st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 20), min_size=1, max_size=6)
)
def test_batches_are_a_pure_function_of_seed_and_step(
    count: int, size: int, seed: int, similar: bool, steps: list[int]
) -> None:
    fresh = [seen(Batches(numbered(count), size, 0, seed, similar_lengths=similar), step) for step in steps]
    used = Batches(numbered(count), size, 0, seed, similar_lengths=similar)
    assert [seen(used, step) for step in steps] == fresh


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 8), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(count: int, size: int, seed: int) -> None:
    batches = Batches(numbered(count), size, 0, seed, similar_lengths=False)
    stream = [row for step in range(-(-3 * count // size)) for row in seen(batches, step)]
    epochs = [stream[i : i + count] for i in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(1, count + 1)) for epoch in epochs)
    if count > 8:
        assert epochs[0] != epochs[1]


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 8), st.integers(0, 5))
def test_with_similar_lengths_no_row_comes_twice_an_epoch_and_whole_batches_are_filled(
    count: int, size: int, seed: int
) -> None:
    batches = Batches(numbered(count), size, 0, seed)
    if count >= size:
        epoch = [row for step in range(count // size) for row in seen(batches, step)]
        assert len(epoch) == len(set(epoch)) == count // size * size


def test_the_rows_that_fill_no_batch_are_left_out_at_random_and_not_for_their_length() -> None:
    batches = Batches(numbered(12), 8, 0, 0)
    assert {row for epoch in range(30) for row in seen(batches, epoch)} == set(range(1, 13))


def test_similar_lengths_compute_less_padding() -> None:
    def padding(similar: bool) -> int:
        batches = Batches(numbered(64), 8, 0, 0, similar_lengths=similar)
        return sum(int((batch.attention_mask == 0).sum()) for step in range(8) for batch in batches.at(step))

    assert padding(True) < padding(False) / 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_micro_batches_hold_the_same_rows(size: int, micro: int) -> None:
    examples = numbered(20)
    whole = seen(Batches(examples, size, 0, 3), 1)
    parts = Batches(examples, size, 0, 3, micro_batch_size=micro)
    assert sorted(seen(parts, 1)) == sorted(whole)
    assert all(len(batch) <= micro for batch in parts.at(1))
