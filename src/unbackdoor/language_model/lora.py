"""LoRA adapters on a model's decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, rank: int) -> Any:
    """The model with adapters of this rank on every linear layer, as peft wraps it.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora needs peft: pip install 'unbackdoor[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)
