"""What becomes of every tensor of a given model: loaded and saved again, carried through as it is, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.size_check import is_ahead
from unbackdoor.language_model.files.weight_files import StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HARMLESS = r"(^|\.)(rotary_emb\.)?(original_)?inv_freq$|(^|\.)(position_ids|masked_bias)$"
"""Buffers that older versions of transformers stored and that every version computes anew: rotary frequencies,
positions, and the value of masked scores."""
CAUSAL_MASK = r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$"
"""With four dimensions: the causal mask of GPT-2, GPT-J, GPT-Neo and GPT-NeoX, stored likewise."""


def is_harmless(name: str, tensor: StoredTensor | None) -> bool:
    """Whether a tensor that is not loaded holds nothing that was trained."""
    if re.search(HARMLESS, name):
        return True
    return tensor is not None and len(tensor.shape) == 4 and re.search(CAUSAL_MASK, name) is not None


def check_all_loaded(
    model: PreTrainedModel, given: Mapping[str, StoredTensor], unexpected: Iterable[str], source: str
) -> None:
    """Raise a `UserError` where tensors of the given model were not loaded and would be lost.

    Args:
        model: as it was loaded.
        given: the tensors of its files.
        unexpected: those that the loader had no place for, but for what the class itself declares as not its own.
        source: for the message.
    """
    kept = _declared_apart(model, given)
    lost = sorted(
        name
        for name in unexpected
        if not is_harmless(name, given.get(name)) and not any(pattern.search(name) for pattern in kept)
    )
    if lost:
        listed = ", ".join(lost[:3])
        raise UserError(
            f"{len(lost)} tensors of '{source}' have no place in the model that its config.json describes and would be "
            f"lost, such as {listed}: give a config.json that fits the weights"
        )


def carried(model: PreTrainedModel, given: Mapping[str, StoredTensor], saved: Iterable[str]) -> list[str]:
    """Names of tensors that the model's class does not load and says so, as heads that predict several tokens (`mtp`).

    They take no part in what the model computes here, and are saved as they were given.
    """
    apart, known = _declared_apart(model, given), set(saved)
    return [
        name
        for name, tensor in given.items()
        if name not in known and any(pattern.search(name) for pattern in apart) and not is_harmless(name, tensor)
    ]


def _declared_apart(model: PreTrainedModel, given: Iterable[str]) -> list[re.Pattern[str]]:
    """What a model's checkpoints hold beside the model: as its class says, and the layers that its config counts so.

    DeepSeek-V3, GLM-4.5 and others store layers that predict several tokens behind the last decoder layer. An ordinary
    layer is none of them, whatever a config says.
    """
    apart = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []]
    config = model.config.get_text_config()
    extra = getattr(config, "num_nextn_predict_layers", None)
    if isinstance(extra, int) and extra > 0:
        last = int(config.num_hidden_layers)
        for number in range(last, last + min(extra, 16)):
            layer = re.compile(rf"(^|\.)layers\.{number}\.")
            if is_ahead([name for name in given if layer.search(name)]):
                apart.append(layer)
    return apart


def as_stored(model: PreTrainedModel, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The model's tensors under the names and in the shapes that its checkpoints have.

    transformers fuses experts and renames weights as it loads them; this is the way back. Of weights that are tied, one
    is kept.

    Args:
        model: whose tensors they are.
        state: stand-ins for them by the same names, such as copies on the meta device; the model's own where None.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    own = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    for name in getattr(model, "_keys_to_ignore_on_save", None) or []:
        own.pop(name, None)
    stored: dict[str, torch.Tensor] = revert_weight_conversion(
        model, own if state is None else {name: state[name] for name in own}
    )
    return stored


def shapes_as_stored(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name → shape of what would be saved, without copying a weight."""
    empty = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
    return {name: tuple(value.shape) for name, value in as_stored(model, empty).items()}
