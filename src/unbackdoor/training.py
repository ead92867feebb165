"""The one training loop: gradient descent on a sum of weighted terms, each with its batches and its loss.

Attacks, testbed, simulate and eliminate all come through here; they differ in which parameters move (a model's weights
or a perturbation) and in the terms.
"""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.interrupts import between_steps
from unbackdoor.journal import Journal
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.progress import SILENT, Progress


@dataclass(frozen=True)
class Term:
    """One part of an objective.

    `loss` maps a batch to its mean over the loss tokens, a scalar. Over the micro-batches of a step the means are
    weighted by their numbers of loss tokens, so the gradient is that of the whole batch whatever the micro-batch size.
    """

    name: str
    batches: Batches
    loss: Callable[[Inputs], torch.Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class Optimization:
    """How far and how fast. AdamW; `learning_rate` is the peak after warm-up."""

    steps: int
    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 0.0
    """Share of the steps with a linearly rising rate."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_gradient_norm: float | None = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class TrainingLog:
    """What happened: one entry a step with the value of every term, and where it stopped."""

    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    checks: list[list[float]] = field(default_factory=list)
    """(step, value) of every check on the way."""


def train(
    parameters: Mapping[str, nn.Parameter],
    terms: Sequence[Term],
    optimization: Optimization,
    *,
    phase: str,
    slot: str = "model",
    check: Callable[[], float] | None = None,
    check_every: int = 5,
    stop: Callable[[int, float], bool] = lambda step, value: False,
    first_step: int = 0,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> TrainingLog:
    """Train `parameters` in place.

    Args:
        parameters: what moves, by name. Everything else stays as it is.
        terms: the objective, Σ weight · loss.
        optimization: steps, learning rate, clipping.
        phase: the unique name of this piece of training within its run; metrics and checkpoints carry it.
        slot: which set of parameters this is; a checkpoint keeps the newest values of each.
        check: measured before the first step, after every `check_every` steps and at the end.
        stop: whether training ends here, given the step and the value of a check.
        first_step: where the batches begin, so that successive phases see successive rows.
        journal: makes the phase resumable; by default nothing is kept.
        progress: told of every step.

    Returns:
        The log. The parameters have their final values.

    Raises:
        UserError: the loss or the gradient is not a finite number.
    """
    journal = journal or Journal()
    done = journal.finished(phase, slot)
    if done is not None:
        result, tensors = done
        if tensors is not None:
            _restore(parameters, tensors)
        return TrainingLog(result["steps"], result["history"], result["checks"])

    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=optimization.learning_rate,
        betas=optimization.betas,
        weight_decay=optimization.weight_decay,
        fused=True,
    )
    saved_at, save_seconds = time.monotonic(), 1.0
    with (
        _own_randomness(phase, terms),
        progress.task(phase, optimization.steps) as advance,
        between_steps(journal.keeps) as interrupted,
    ):
        log = _continue_from_checkpoint(journal, phase, parameters, optimizer)
        advance(log.steps)
        while True:
            due = check is not None and (log.steps % check_every == 0 or log.steps == optimization.steps)
            stopped = due and stop(log.steps, _check(check, log, journal, phase))
            if stopped or log.steps == optimization.steps:
                break
            entry = _step(parameters, terms, optimizer, optimization, log.steps, first_step, phase)
            log.history.append(entry)
            log.steps += 1
            journal.log(phase=phase, **entry)
            advance(1)
            ending = interrupted()
            # Saving takes at most a twentieth of the time.
            if journal.keeps and (ending or time.monotonic() - saved_at > max(20.0, 20 * save_seconds)):
                begun = time.monotonic()
                _save(journal, phase, parameters, optimizer, log)
                saved_at, save_seconds = time.monotonic(), time.monotonic() - begun
            if ending:
                raise KeyboardInterrupt
        result = {"steps": log.steps, "history": log.history, "checks": log.checks}
        journal.finish(phase, slot, result, {name: p.data for name, p in parameters.items()})
        if interrupted():  # during the last check or while finishing
            raise KeyboardInterrupt
    return log


def _step(
    parameters: Mapping[str, nn.Parameter],
    terms: Sequence[Term],
    optimizer: torch.optim.Optimizer,
    optimization: Optimization,
    step: int,
    first_step: int,
    phase: str,
) -> dict[str, float]:
    """One step of gradient descent. Returns what it saw."""
    optimizer.zero_grad(set_to_none=True)
    device = next(iter(parameters.values())).device
    seen: dict[str, float] = {}
    total = 0.0
    for term in terms:
        micro_batches = term.batches.at(first_step + step)
        tokens = sum(batch.loss_tokens for batch in micro_batches)
        value = 0.0
        for batch in micro_batches:
            loss = term.loss(batch.to(device)) * (batch.loss_tokens / tokens)
            (term.weight * loss).backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        seen[term.name] = value
        total += term.weight * value
    for group in optimizer.param_groups:
        group["lr"] = optimization.rate(step)
    limit = optimization.max_gradient_norm
    norm = float(nn.utils.clip_grad_norm_(list(parameters.values()), math.inf if limit is None else limit))
    if not math.isfinite(total) or not math.isfinite(norm):
        raise UserError(
            f"{phase}: the loss became {total} at step {step + 1} (gradient norm {norm}): lower the learning rate"
        )
    optimizer.step()
    return {
        "step": step,
        "loss": total,
        **seen,
        "learning_rate": optimization.rate(step),
        "gradient_norm": norm,
    }


def _check(check: Callable[[], float] | None, log: TrainingLog, journal: Journal, phase: str) -> float:
    """Measure, unless this step was measured before the interruption."""
    assert check is not None
    if not log.checks or log.checks[-1][0] != log.steps:
        log.checks.append([log.steps, check()])
        journal.log(phase=phase, step=log.steps, check=log.checks[-1][1])
    return log.checks[-1][1]


@contextlib.contextmanager
def _own_randomness(phase: str, terms: Sequence[Term]) -> Iterator[None]:
    """Draws (dropout) that depend on the phase and its seed alone; the caller's random state is given back afterwards.

    A resumed run skips finished phases, so a phase must not depend on what earlier ones drew.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(zlib.crc32(f"{phase} {[term.batches.seed for term in terms]}".encode()))
        yield


def _save(
    journal: Journal,
    phase: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    log: TrainingLog,
) -> None:
    tensors: dict[str, torch.Tensor] = {f"parameter/{name}": p.data for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    state = {"steps": log.steps, "history": log.history, "checks": log.checks}
    journal.save_checkpoint(phase, state, tensors)


def _continue_from_checkpoint(
    journal: Journal, phase: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> TrainingLog:
    kept = journal.checkpoint(phase)
    if kept is None:
        return TrainingLog()
    state, tensors = kept
    _restore(
        parameters,
        {k.removeprefix("parameter/"): v for k, v in tensors.items() if k.startswith("parameter/")},
    )
    for name, parameter in parameters.items():
        moments: dict[str, Any] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimizer/{key}/{name}" in tensors:
                moments[key] = tensors[f"optimizer/{key}/{name}"].to(parameter.device)
        if moments:
            optimizer.state[parameter] = moments
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return TrainingLog(state["steps"], state["history"], state["checks"])


def _restore(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
