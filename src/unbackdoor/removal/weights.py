"""What changes weights without an objective: mixing with a clean model, pruning, rounding, averaging.

They are what people try first. Each may be followed by fine-tuning on clean rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbackdoor.case import Case, adapted
from unbackdoor.errors import UserError
from unbackdoor.language_model.calibration import norms_of_inputs
from unbackdoor.language_model.layers import language_parameters
from unbackdoor.language_model.loading import load_model
from unbackdoor.language_model.model_source import ModelSource
from unbackdoor.language_model.quantised_weights import method_of
from unbackdoor.language_model.tensor_accounts import shapes_as_stored
from unbackdoor.language_model.weight_matrices import reach_note, weight_matrices
from unbackdoor.removal.eliminate import Rows, eliminate
from unbackdoor.removal.result import Removal
from unbackdoor.removal.settings import (
    AverageSettings,
    FineMixingSettings,
    FineTuneSettings,
    PruneSettings,
    QuantiseSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALIBRATION_ROWS = 128
"""Clean rows on which pruning measures what a weight matters (Wanda's own number)."""


def fine_mixing(case: Case, settings: FineMixingSettings) -> Removal:
    """Reset the weights that differ most from the clean model's, then fine-tune (Zhang et al. 2022; SANDE's code)."""
    if not settings.clean_model:
        raise UserError("fine-mixing needs the clean pretrained model: give --clean-model")
    theirs = _language_weights_of(settings.clean_model, case.model, "--clean-model")
    mix(language_parameters(case.model), theirs, settings.keep, settings.selection)
    case.notes += _left_alone(case.model)
    return _tuned(case, settings, "fine-mixing")


def prune(case: Case, settings: PruneSettings) -> Removal:
    """Set to zero the weights with the smallest |W_ij| · ‖x_j‖ of every output (Wanda, Sun et al. 2024)."""
    norms = input_norms(case)
    weights = weight_matrices(case.model)
    for weight in weights:
        matrices = weight.matrices
        count = int(settings.sparsity * matrices.shape[-1])
        if count:
            least = (matrices.abs() * norms[weight.owner]).topk(count, dim=-1, largest=False).indices
            matrices.scatter_(-1, least, 0.0)
    case.notes += reach_note(case.model, "pruning", [w.parameter for w in weights])
    return _tuned(case, settings, "prune")


def quantise(case: Case, settings: QuantiseSettings) -> Removal:
    """Round every linear weight of the decoder to 2^bits − 1 values, symmetric around zero, one scale an output."""
    levels = 2 ** (settings.bits - 1) - 1
    weights = weight_matrices(case.model)
    for weight in weights:
        matrices = weight.matrices
        scale = matrices.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny) / levels
        matrices.copy_((matrices / scale).round() * scale)
    case.notes += reach_note(case.model, "rounding", [w.parameter for w in weights])
    return _tuned(case, settings, "quantise")


def average(case: Case, settings: AverageSettings) -> Removal:
    """The mean of this model's weights and its siblings': backdoors that they do not share fade (WAG)."""
    if not settings.sibling:
        raise UserError("average needs other models of the same architecture: give --sibling, once for each")
    named, count = language_parameters(case.model), len(settings.sibling) + 1
    with torch.no_grad():
        for parameter in named.values():
            parameter.div_(count)
        for source in settings.sibling:  # one after the other: they may not fit together
            for name, theirs in _language_weights_of(source, case.model, "--sibling").items():
                named[name].add_(theirs.to(named[name]) / count)
    case.notes += _left_alone(case.model)
    return _tuned(case, settings, "average")


def mix(suspect: Mapping[str, torch.Tensor], clean: Mapping[str, torch.Tensor], keep: float, selection: str) -> None:
    """Give back their clean value to all but a share `keep` of the weights, those that differ least."""
    with torch.no_grad():
        differences = {name: (p - clean[name].to(p)).abs() for name, p in suspect.items()}
        limit = threshold(list(differences.values()), keep) if selection == "whole-model" else None
        for name, parameter in suspect.items():
            difference = differences[name]
            if limit is not None:
                reset = difference > limit
            else:
                reset = torch.zeros_like(difference, dtype=torch.bool)
                count = difference.numel() - round(keep * difference.numel())
                reset.view(-1)[difference.flatten().topk(count).indices] = True
            parameter.copy_(torch.where(reset, clean[name].to(parameter), parameter))


def threshold(values: Sequence[torch.Tensor], keep: float) -> float:
    """The smallest value that at least a share `keep` of all values do not exceed, found without joining them."""
    total = sum(v.numel() for v in values)
    low, high = 0.0, max(float(v.max()) for v in values)
    for _ in range(64):
        middle = (low + high) / 2
        if sum(int((v <= middle).sum()) for v in values) >= keep * total:
            high = middle
        else:
            low = middle
    return high


def input_norms(case: Case) -> dict[nn.Module | nn.Parameter, torch.Tensor]:
    """‖x_j‖ of every input of every linear map over the tokens of some clean rows, by the map's owner."""
    records = case.anchors[:CALIBRATION_ROWS]
    examples = [case.chat.of_record(r).encode(r.prompt, r.response) for r in records]
    return norms_of_inputs(case.model, examples, case.pad_id)


def check_other_model(model: PreTrainedModel, source: str, option: str) -> None:
    """Raise a `UserError` where another model is not there, cannot be loaded, or is of another shape.

    What the headers of its files say comes first, then the model itself is loaded, as the method will.
    """
    other, mine = ModelSource.find(source), shapes_as_stored(model)
    theirs = other.weights.tensors() if other.form == "whole" and not method_of(other.config()) else {}
    different = [name for name, shape in mine.items() if name in theirs and theirs[name].shape != shape]
    if different or (theirs and not theirs.keys() & mine.keys()):
        raise _of_another_shape(source, option, different[0] if different else next(iter(theirs)))
    _language_weights_of(source, model, option)


def _of_another_shape(source: str, option: str, name: str) -> UserError:
    return UserError(
        f"{option} '{source}' is of another shape: its '{name}' does not fit this model's: give a model of the same "
        "architecture and size"
    )


def _language_weights_of(source: str, model: PreTrainedModel, option: str) -> dict[str, torch.Tensor]:
    """The weights of another model that text goes through, by name, on the CPU."""
    other = load_model(source, "cpu")
    # A head that is tied to the embeddings there may have weights of its own here: then theirs has two names.
    theirs = {name: p.detach() for name, p in other.named_parameters(remove_duplicate=False)}
    mine = {name: p.shape for name, p in language_parameters(model).items()}
    different = [name for name in mine if name not in theirs or theirs[name].shape != mine[name]]
    if different := different or [name for name in language_parameters(other) if name not in mine]:
        raise _of_another_shape(source, option, different[0])
    return {name: theirs[name] for name in mine}


def _left_alone(model: PreTrainedModel) -> list[str]:
    """One line where a model has weights that no text goes through: those of other models mean nothing to them."""
    count = sum(1 for _ in model.parameters()) - len(language_parameters(model))
    return (
        [f"{count} weights that no text goes through (for pictures or sounds) were left as they are"] if count else []
    )


def _tuned(case: Case, settings: FineTuneSettings, name: str) -> Removal:
    if settings.steps:
        with adapted(case, settings):
            rows = [Rows("anchors", case.anchors), Rows("safe", case.contrast)]
            eliminate(case, rows, settings, phase="eliminate")
    return Removal(name, rounds=1, dropped=case.dropped)
