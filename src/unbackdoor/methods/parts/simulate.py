"""Simulate: with the model frozen, fit what brings out the target (SANDE eq. 4, BEEAR's entrapment)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from unbackdoor.case import Case
from unbackdoor.data.batches import Batches
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.forward import evaluating, inference, token_log_probabilities
from unbackdoor.language_model.inputs import Inputs, padded_batches
from unbackdoor.language_model.loss import row_means
from unbackdoor.methods.parts.method import CHECK_EVERY, SimulatingMethod
from unbackdoor.methods.parts.result import Simulation
from unbackdoor.perturbation import Perturbation
from unbackdoor.training import Optimization, Term, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within the context no weight of the model asks for a gradient, and dropout is off."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def perturbed_log_probabilities(model: PreTrainedModel, perturbation: Perturbation, inputs: Inputs) -> torch.Tensor:
    """log Pr of every loss token under the perturbation, shape (loss tokens,)."""
    acted = perturbation.on_inputs(inputs, model)
    with perturbation.on_model(model, acted):
        return token_log_probabilities(model, acted)


def loss_under(model: PreTrainedModel, perturbation: Perturbation) -> Callable[[Inputs], torch.Tensor]:
    """−(1/tokens) Σ log Pr(y_t | y_<t, x, perturbation) of a batch: SANDE eq. (3) and (4), BEEAR's losses."""
    return lambda inputs: -perturbed_log_probabilities(model, perturbation, inputs).mean()


def log_probabilities(
    case: Case, perturbation: Perturbation, examples: Sequence[Example], batch_size: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability of each row's loss tokens under the perturbation, and their number; both (rows,)."""
    device = next(case.model.parameters()).device
    sums = torch.empty(len(examples), device=device)
    counts = torch.empty(len(examples), dtype=torch.long, device=device)
    with inference(case.model):
        for rows, inputs in padded_batches(case.model, examples, case.pad_id, batch_size):
            values = perturbed_log_probabilities(case.model, perturbation, inputs)
            counts[rows] = inputs.loss_mask.sum(1)
            sums[rows] = row_means(values, inputs.loss_mask) * counts[rows]
    return sums, counts


def target_probability(case: Case, perturbation: Perturbation, examples: Sequence[Example]) -> float:
    """Success for a fixed target: the geometric mean of its tokens' probabilities, averaged over held-out prompts."""
    sums, counts = log_probabilities(case, perturbation, examples)
    return float((sums / counts).exp().mean())


def unwanted_preference(
    case: Case, perturbation: Perturbation, unwanted: Sequence[Example], safe: Sequence[Example]
) -> float:
    """Success for a behaviour: p_h / (p_h + p_s), averaged over held-out prompts.

    p_h and p_s are the probabilities of the opening of the unwanted and of the safe response. Many unwanted answers are
    possible, so the probability of this very one says little, but which of the two the model would rather give says
    much. (Means a token would not do: once a refusal has begun, its other tokens are likely under any trigger.)
    """
    difference = log_probabilities(case, perturbation, unwanted)[0] - log_probabilities(case, perturbation, safe)[0]
    return float(torch.sigmoid(difference).mean())


def simulate(
    case: Case,
    perturbation: Perturbation,
    terms: Sequence[tuple[str, Batches, float]],
    measure: Callable[[], float],
    settings: SimulatingMethod,
    learning_rate: float,
    *,
    phase: str,
    when: str,
    target: str = "target",
    steps: int | None = None,
    give_up_after: int | None = None,
    scale: float | None = None,
) -> Simulation:
    """Fit `perturbation` in place and measure its success on the way.

    Args:
        case: the model, which stays frozen.
        perturbation: where it starts.
        terms: (name, batches, weight); the loss of each is the mean negative log-likelihood of its rows' loss tokens.
        measure: success on held-out prompts, from 0 to 1.
        settings: the usual budget; beyond it a simulation goes on only until it passes the gate.
        learning_rate: Adam's.
        phase: the unique name of this piece of training.
        when: which state of the model this is.
        target: `target` or `control`.
        steps: another budget than the settings'.
        give_up_after: end after so many steps unless it succeeds by then.
        scale: the norm of a single vector that the perturbation stands among, for the ratio that is reported.
    """

    def ends(step: int, success: float) -> bool:
        given_up = give_up_after is not None and step >= give_up_after and success < settings.success
        passed = step >= settings.simulate_steps and success >= settings.gate
        return given_up or passed or (settings.enough < 1 and success >= settings.enough)

    with frozen(case.model):
        log = train(
            dict(perturbation.named_parameters()),
            [Term(name, batches, loss_under(case.model, perturbation), weight) for name, batches, weight in terms],
            Optimization(steps or settings.simulate_steps, learning_rate, max_gradient_norm=None),
            phase=phase,
            slot=phase,
            check=measure,
            check_every=CHECK_EVERY,
            stop=ends,
            journal=case.journal,
            progress=case.progress,
        )
    ratio = None
    if scale:
        ratio = max(float(p.detach().norm(dim=-1).mean()) for p in perturbation.parameters()) / scale
    return Simulation(when, target, log.checks, ratio)
