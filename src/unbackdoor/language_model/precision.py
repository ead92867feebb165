"""In which arithmetic this process computes."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
_chosen: Precision = "auto"


def compute_in(precision: Precision) -> None:
    """Choose the arithmetic of everything that this process computes from now on."""
    global _chosen
    _chosen = precision


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether matrix products on this device are in bfloat16, which is asked for or (auto) a GPU's."""
    return device.type == "cuda" if _chosen == "auto" else _chosen == "bfloat16"


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 compute over float32 masters, or plain float32.

    On a CPU float32 unless asked for otherwise: only processors with bfloat16 instructions gain (avx512_bf16 or AMX:
    twice the speed for a model of 135 million parameters), all others lose.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16(device))
