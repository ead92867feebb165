"""A config.json against the headers of its weights, before anything is made of it.

A config can ask for a billion layers beside a file of a kilobyte. What it asks for is compared with what the files
hold, while the model is made: on the meta device, where a tensor costs nothing but its entry.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.weight_files import StoredTensor

LAYERS = (
    r"(^|_)(n|num|hidden|encoder|decoder)_?(\w+_)?(layers?|blocks|stages|depth)$|^(depth|n_layer|num_layers|n_blocks)$"
)
"""Names of how many layers there are, each of which has tensors of its own."""
LABELS = r"(^|_)labels$"
LAYER_NUMBER = re.compile(r"(^|\.)(layers|h|blocks|layer)\.(\d+)\.")
SEVERAL_AHEAD = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|mtp\w*|nextn\w*|embed_tokens)\.")
"""What a layer that predicts several tokens has beside those of an ordinary one (DeepSeek-V3's, GLM's)."""
MOST_LABELS, LEAST_LAYERS, LEAST_SIZE, LARGEST_NUMBER = 100_000, 256, 2**27, 2**63
PACKED = 8
"""How many weights of a quantised tensor may stand in one stored number."""


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], source: str) -> None:
    """Raise a `UserError` where a config.json asks for more than its files hold, or leaves layers of them out.

    Args:
        config: as it is believed.
        tensors: of the files, by name.
        source: for the message.
    """
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    for name, value in _numbers(config):
        last = name.rpartition(".")[2]
        most = LARGEST_NUMBER
        if re.search(LAYERS, last):
            most = max(LEAST_LAYERS, len(tensors))
        elif re.search(LABELS, last):
            most = MOST_LABELS
        elif not re.search(r"token|_ids?$|index|seed|theta|base|factor", last):
            most = max(LEAST_SIZE, PACKED * elements)
        if abs(value) > most:
            raise UserError(
                f"config.json of '{source}' says {name} {_shown(value)}, and its weights are {len(tensors):,} tensors "
                f"of {elements:,} numbers: give a config.json that fits the weights"
            )
    _check_memory(elements, source)
    _check_layers(config, tensors, source)


def _numbers(config: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    if isinstance(config, Mapping) and depth < 20:
        for key, value in config.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(config, list) and depth < 20:
        for value in config:
            yield from _numbers(value, name, depth + 1)
    elif isinstance(config, int) and not isinstance(config, bool):
        yield name, config


def _shown(value: int) -> str:
    return f"{value:,}" if abs(value) < 1e24 else f"{value:.3g}" if abs(value) < 1e300 else "with hundreds of digits"


def _check_memory(elements: int, source: str) -> None:
    """Raise a `UserError` where the weights in float32 have no room in the machine's memory."""
    needed = 4 * elements
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return
    if needed > max(there, 2**30):
        raise UserError(
            f"the weights of '{source}' are {elements:,} numbers, {needed / 1e9:,.0f} GB in float32, and this machine "
            f"has {there / 1e9:,.0f} GB of memory: use a larger one"
        )


def _check_layers(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], source: str) -> None:
    """Raise a `UserError` where the files hold layers behind the last one of the config."""
    counts = [value for name, value in _numbers(config) if re.search(LAYERS, name.rpartition(".")[2])]
    if not counts:
        return
    ahead = [value for name, value in _numbers(config) if name.rpartition(".")[2] == "num_nextn_predict_layers"]
    last = max(counts)
    behind: dict[int, list[str]] = {}
    for name in tensors:
        if (found := LAYER_NUMBER.search(name)) and int(found[3]) >= last:
            behind.setdefault(int(found[3]), []).append(name)
    declared = range(last, last + min(max([*ahead, 0]), 16))
    lost = [
        name for number, names in sorted(behind.items()) if number not in declared or not is_ahead(names)
        for name in names
    ]  # fmt: skip
    if lost:
        raise UserError(
            f"{len(lost)} tensors of '{source}' have no place in the model that its config.json describes and would be "
            f"lost, such as {', '.join(sorted(lost)[:3])}: its files hold {max(behind) + 1} layers, and the config "
            f"names {last}: give a config.json that fits the weights"
        )


def is_ahead(names: list[str]) -> bool:
    """Whether these tensors of a layer are of one that predicts several tokens, and not of an ordinary one."""
    return any(SEVERAL_AHEAD.search(name) for name in names)


@dataclass
class _Made:
    """What a model that is being made has registered."""

    modules: int = 0
    parameters: int = 0
    elements: int = 0
    buffered: int = 0


@contextlib.contextmanager
def bounded(tensors: int, elements: int, source: str, *, packed: bool = False) -> Iterator[None]:
    """While a model is made: raise a `UserError` as soon as it has more than its files could fill.

    Args:
        tensors: how many there are in the files.
        elements: of how many numbers.
        source: for the message.
        packed: the files hold quantised weights, several in one number.
    """
    made = _Made()
    most = (4 * tensors + 1000, 3 * elements * (PACKED if packed else 1) + 2**22)
    hooks = torch.nn.modules.module

    def fail() -> None:
        raise UserError(
            f"config.json of '{source}' describes a model of more than {made.parameters:,} tensors and "
            f"{made.elements + made.buffered:,} numbers, and its files hold {tensors:,} of {elements:,}: give a "
            "config.json that fits the weights"
        )

    def parameter(_: torch.nn.Module, __: str, value: torch.nn.Parameter) -> None:
        if value is not None and value.is_meta:
            made.parameters += 1
            made.elements += value.numel()
            if made.parameters > most[0] or made.elements > most[1]:
                fail()

    def buffer(_: torch.nn.Module, __: str, value: torch.Tensor) -> None:
        if value is not None:
            made.buffered += value.numel()
            if made.buffered > max(4 * elements, 2**28):
                fail()

    def module(_: torch.nn.Module, __: str, ___: torch.nn.Module) -> None:
        made.modules += 1
        if made.modules > 64 * tensors + 100_000:
            fail()

    held = [
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(buffer),
        hooks.register_module_module_registration_hook(module),
    ]
    try:
        yield
    finally:
        for hook in held:
            hook.remove()
