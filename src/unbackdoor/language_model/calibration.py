"""What enters every linear map of the decoder on some rows: its size, input by input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.forward import forward, inference, logits_only_at
from unbackdoor.language_model.inputs import padded_batches
from unbackdoor.language_model.layers import linear_modules
from unbackdoor.language_model.weight_matrices import WeightMatrices, weight_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 16


class _RoutedError(Exception):
    """A module was given some of a batch's positions, and which of them are real cannot be said."""


def norms_of_inputs(
    model: PreTrainedModel, examples: Sequence[Example], pad: int
) -> dict[nn.Module | nn.Parameter, torch.Tensor]:
    """‖x_j‖ of every input of every linear map over the tokens of some rows, by `WeightMatrices.owner`.

    Of a linear module the shape is (in,); of experts it is (experts, 1, in), over the tokens that were sent to each.
    What no token reached has norms of 1, so that its weights are judged by their own size.

    Measured in one pass over the whole model, where Wanda's code prunes one layer before it measures the next.
    """
    experts = [w for w in weight_matrices(model) if isinstance(w.owner, nn.Parameter)]
    # Experts are given their tokens without the batch's mask: rows alone have no padding.
    try:
        squares = _squares(model, examples, pad, experts, 1 if experts else ROWS_AT_ONCE)
    except _RoutedError:
        squares = _squares(model, examples, pad, experts, 1)
    return {owner: torch.where(_reached(s), s.sqrt(), torch.ones_like(s)) for owner, s in squares.items()}


def _reached(squares: torch.Tensor) -> torch.Tensor:
    return (squares > 0).any(-1, keepdim=True) if squares.ndim > 1 else torch.ones_like(squares, dtype=torch.bool)


def _squares(
    model: PreTrainedModel, examples: Sequence[Example], pad: int, experts: Sequence[WeightMatrices], at_once: int
) -> dict[nn.Module | nn.Parameter, torch.Tensor]:
    squares: dict[nn.Module | nn.Parameter, torch.Tensor] = {}
    real = torch.empty(0)

    def look(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        given = arguments[0].detach().float()
        if given[..., 0].numel() == real.numel():
            given = given.reshape(*real.shape, -1)[real]
        elif at_once > 1:
            raise _RoutedError
        seen = given.reshape(-1, given.shape[-1]).pow(2).sum(0)
        squares[module] = squares.get(module, torch.zeros_like(seen)) + seen

    inputs_of = _ExpertInputs(experts)
    with contextlib.ExitStack() as contexts:
        for module in linear_modules(model):
            contexts.enter_context(module.register_forward_pre_hook(look))
        contexts.enter_context(inference(model))
        contexts.enter_context(logits_only_at(model, None))
        contexts.enter_context(_one_expert_after_the_other(model) if experts else contextlib.nullcontext())
        for _, inputs in padded_batches(model, examples, pad, at_once, shortest_first=False):
            real = inputs.attention_mask.bool()
            with inputs_of if experts else contextlib.nullcontext():
                forward(model, inputs)
    for module in linear_modules(model):
        weight = cast(torch.Tensor, module.weight)
        squares.setdefault(module, torch.ones(weight.shape[-1 if isinstance(module, nn.Linear) else 0]).to(weight))
    return squares | inputs_of.squares


class _ExpertInputs(TorchFunctionMode):
    """Sums the squares of what each expert's matrix is multiplied with, seen from the products themselves.

    Between the two matrices of an expert there is no module at which a hook could look.
    """

    def __init__(self, experts: Sequence[WeightMatrices]) -> None:
        super().__init__()
        self.by_storage = {w.parameter.untyped_storage().data_ptr(): w for w in experts}
        self.squares: dict[nn.Module | nn.Parameter, torch.Tensor] = {
            w.owner: torch.zeros(len(w.matrices), 1, w.matrices.shape[-1], device=w.matrices.device) for w in experts
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.ndim >= 2 and a.is_floating_point()]
        if len(tensors) >= 2 and isinstance(result, torch.Tensor):
            for weight in tensors:
                of = self.by_storage.get(weight.untyped_storage().data_ptr())
                if of is not None:
                    self._see(of, weight, next(t for t in tensors if t is not weight))
        return result

    def _see(self, of: WeightMatrices, weight: torch.Tensor, given: torch.Tensor) -> None:
        squares = self.squares[of.owner]
        if given.shape[-1] != squares.shape[-1]:
            return
        seen = given.detach().float().pow(2)
        if weight.ndim == 3 and len(weight) == len(squares) and given.ndim == 3 and len(given) == len(squares):
            squares += seen.sum(1, keepdim=True)
        elif weight.ndim == 2:
            size = of.parameter[0].numel()
            number = (weight.storage_offset() - of.parameter.storage_offset()) // size
            squares[number, 0] += seen.reshape(-1, seen.shape[-1]).sum(0)


@contextlib.contextmanager
def _one_expert_after_the_other(model: PreTrainedModel) -> Iterator[None]:
    """The experts are computed in the plain way, one matrix product each, while the context is open."""
    config = model.config
    own = getattr(config, "_experts_implementation", None)
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = own
