"""Models in a GGUF file, as llama.cpp has them: dequantised as they are loaded."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.loader_errors import explained
from unbackdoor.language_model.model_source import ModelSource


def needs_gguf() -> None:
    """Raise a `UserError` that names what to install where GGUF files cannot be read."""
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
        raise UserError("reading GGUF files needs gguf and accelerate: pip install 'unbackdoor[gguf]'")


def load_arguments(given: ModelSource) -> dict[str, Any]:
    """What the loader is told, so that the weights are dense afterwards.

    Raises:
        UserError: one part of a model that was split into several files.
    """
    from transformers import GgufConfig

    needs_gguf()
    assert given.gguf is not None
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", given.gguf.name):
        raise UserError(f"'{given.gguf}' is a part of a model: join the parts first (llama-gguf-split --merge)")
    return {"gguf_file": given.gguf.name, "quantization_config": GgufConfig(dequantize=True)}


def told(given: ModelSource) -> str:
    """A sentence for the report: the file, and the kinds of numbers that it holds."""
    needs_gguf()
    from gguf import GGUFReader

    assert given.gguf is not None
    with explained(given.name, "GGUF file"):
        kinds = sorted({tensor.tensor_type.name for tensor in GGUFReader(given.gguf).tensors})
    return f"read from the GGUF file {given.gguf.name} ({', '.join(kinds)}), dequantised"
