"""Quantised checkpoints: dequantised as they are loaded where transformers can on any machine, else refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DEQUANTISED = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
"""What transformers makes dense as it loads it, without a GPU."""

SCALES = r"(scale|scale_inv|scales|blocks|zero_point|weight_packed|weight_shape|g_idx)$"
"""Names of what stands for a weight together with others; they are no weights of their own."""


def method_of(config: dict[str, Any]) -> str | None:
    """How a config.json says that its weights are quantised; None where they are not."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, dict):
            return str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown"))
    return None


def ask_for_dense_weights(config: PreTrainedConfig, source: str) -> None:
    """Change a config so that the loader dequantises; nothing where the weights are not quantised.

    Raises:
        UserError: a kind that cannot be undone here, or a package is missing.
    """
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if not isinstance(found, dict):
            continue
        method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown"))
        if method not in DEQUANTISED:
            raise UserError(
                f"the weights of '{source}' are quantised ({method[:40]}), which is not undone here: give the model "
                "that it was made from, or dequantise it first (transformers: model.dequantize().save_pretrained(DIR))"
            )
        if method == "compressed-tensors":
            _needs_compressed_tensors(source)
        found["dequantize"] = True


def _needs_compressed_tensors(source: str) -> None:
    import importlib.util

    if importlib.util.find_spec("compressed_tensors") is None:
        raise UserError(
            f"the weights of '{source}' are quantised (compressed-tensors): pip install 'unbackdoor[quantised]', which "
            "dequantises them"
        )


def is_part_of_a_weight(name: str) -> bool:
    """Whether a stored tensor is a scale or the like of a quantised weight."""
    return re.search(SCALES, name) is not None


def forget(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose weights are dense now, without the marks by which it is taken for a quantised one.

    With them the library would refuse to save it, or quantise it again on the way.
    """
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "_weight_conversions"):
        if name in vars(model):
            delattr(model, name)
    return model
