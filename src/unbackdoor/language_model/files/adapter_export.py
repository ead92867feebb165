"""The difference between two models as a LoRA adapter: base plus adapter is the other model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.model_source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from unbackdoor.language_model.layers import as_matrix, is_linear
from unbackdoor.language_model.weight_matrices import expert_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Of a weight's change: how much the adapter may leave out, as a share of its Frobenius norm."""
ROUNDING = 1e-6
"""Of a weight: a change below this share of its norm is the rounding of float32, and none."""
SMALLEST_RANK, LARGEST_SHARE = 8, 0.5
"""The first rank that is tried, and the largest as a share of a full one: above it all singular values are computed."""


def check_adapter(model: PreTrainedModel, given: ModelSource) -> None:
    """Raise a `UserError` where what LoRA will make of `model` could not be held by an adapter on linear maps.

    Args:
        model: as it was loaded.
        given: where from. Of an adapter, it has changed already what the new one must hold, too.
    """
    remedy = "leave --save-adapter out: the whole model is saved in any case"
    if expert_parameters(model):
        raise UserError(
            f"--save-adapter: the experts of a {type(model).__name__} are kept in one tensor, which adapter files of "
            f"linear maps cannot hold: {remedy}"
        )
    if given.base is None:
        return
    linear = {name for name, module in model.named_modules() if is_linear(module)}
    if other := _changed_otherwise(model, load_model(given.base.name, "cpu"), linear):
        raise UserError(
            f"--save-adapter: the adapter '{given.name}' changes {other}, which is no linear map's weight: {remedy}"
        )


def save_adapter(model: PreTrainedModel, base: PreTrainedModel, base_name: str, directory: Path) -> str:
    """Write the adapter that makes `model` of `base`, where there is one; nothing where there is none.

    After a removal with adapters the change is of low rank. Nothing is approximated in silence: each weight's change is
    there within `TOLERANCE`, at whatever rank that takes.

    Args:
        model: the cleansed model.
        base: what the adapter is to be put on, of the same shape, on the CPU.
        base_name: where that is found, for the adapter's config.
        directory: where to; one that exists is replaced.

    Returns:
        A sentence for the report: what was written, or why nothing was.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    theirs, linear = dict(base.named_modules()), {}
    for name, module in model.named_modules():
        if is_linear(module):
            linear[name] = module
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in linear.items():
        weight, old = as_matrix(module).cpu().float(), as_matrix(theirs[name]).cpu().float()
        if (weight - old).norm() <= ROUNDING * old.norm():
            continue
        factors[name] = _factors(weight - old)
    if other := _changed_otherwise(model, base, set(linear)):
        return f"no adapter was written: {other} changed and is no linear map's weight"
    if not factors:
        return "no adapter was written: no weight changed"
    rank = max(len(a) for a, _ in factors.values())
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(factors),
        task_type="CAUSAL_LM",
        inference_mode=True,
        fan_in_fan_out=not any(isinstance(linear[name], nn.Linear) for name in factors),
        base_model_name_or_path=base_name,
    )
    config.save_pretrained(str(directory))
    stored = {}
    for name, (a, b) in factors.items():
        filled = (nn.functional.pad(a, (0, 0, 0, rank - len(a))), nn.functional.pad(b, (0, rank - len(a))))
        for part, value in zip("AB", filled, strict=True):
            stored[f"base_model.model.{name}.lora_{part}.weight"] = value.contiguous()
    save_file(stored, directory / ADAPTER_WEIGHTS, {"format": "pt"})
    assert json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"] == rank
    return f"{directory.name}/ is the same model as an adapter of rank {rank} on '{base_name}'"


def _factors(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank), B A = change, of a rank that is no larger than it has to be (up to twice)."""
    rank, norm = SMALLEST_RANK, change.norm()
    while rank <= LARGEST_SHARE * min(change.shape):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the projections are random
            u, s, v = torch.svd_lowrank(change, q=rank, niter=4)
        a, b = s.sqrt()[:, None] * v.T, u * s.sqrt()
        if (change - b @ a).norm() <= TOLERANCE * norm:
            return a, b
        rank *= 2
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    left_out = (s.square().sum() - s.square().cumsum(0)).clamp(min=0).sqrt()  # by the first so many
    rank = int((left_out > TOLERANCE / 2 * norm).sum()) + 1
    return s[:rank].sqrt()[:, None] * vh[:rank], u[:, :rank] * s[:rank].sqrt()


def _changed_otherwise(model: PreTrainedModel, base: PreTrainedModel, linear: set[str]) -> str | None:
    """The first parameter that changed and that no adapter on these linear maps can change."""
    old = dict(base.named_parameters())
    for name, value in model.named_parameters():
        if name.removesuffix(".weight") in linear:
            continue
        before = old[name].detach().float()
        if value.shape != before.shape or (value.detach().cpu().float() - before).norm() > ROUNDING * before.norm():
            return str(name)
    return None
