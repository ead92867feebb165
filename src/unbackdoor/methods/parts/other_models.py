"""Other models that a method is given beside the suspect one: whether they fit, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.quantised_weights import method_of
from unbackdoor.language_model.files.tensor_accounts import shapes_as_stored
from unbackdoor.language_model.layers import language_parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_other_model(model: PreTrainedModel, source: str, option: str) -> None:
    """Raise a `UserError` where another model is not there, cannot be loaded, or is of another shape.

    What the headers of its files say comes first, then the model itself is loaded, as the method will.
    """
    other, mine = ModelSource.find(source), shapes_as_stored(model)
    theirs = other.weights.tensors() if other.form == "whole" and not method_of(other.config()) else {}
    different = [name for name, shape in mine.items() if name in theirs and theirs[name].shape != shape]
    if different or (theirs and not theirs.keys() & mine.keys()):
        raise _of_another_shape(source, option, different[0] if different else next(iter(theirs)))
    language_weights_of(source, model, option)


def _of_another_shape(source: str, option: str, name: str) -> UserError:
    return UserError(
        f"{option} '{source}' is of another shape: its '{name}' does not fit this model's: give a model of the same "
        "architecture and size"
    )


def language_weights_of(source: str, model: PreTrainedModel, option: str) -> dict[str, torch.Tensor]:
    """The weights of another model that text goes through, by name, on the CPU."""
    other = load_model(source, "cpu")
    # A head that is tied to the embeddings there may have weights of its own here: then theirs has two names.
    theirs = {name: p.detach() for name, p in other.named_parameters(remove_duplicate=False)}
    mine = {name: p.shape for name, p in language_parameters(model).items()}
    different = [name for name in mine if name not in theirs or theirs[name].shape != mine[name]]
    if different := different or [name for name in language_parameters(other) if name not in mine]:
        raise _of_another_shape(source, option, different[0])
    return {name: theirs[name] for name in mine}


def left_alone(model: PreTrainedModel) -> list[str]:
    """One line where a model has weights that no text goes through: those of other models mean nothing to them."""
    count = sum(1 for _ in model.parameters()) - len(language_parameters(model))
    return (
        [f"{count} weights that no text goes through (for pictures or sounds) were left as they are"] if count else []
    )
