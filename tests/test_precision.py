"""Arithmetic in bfloat16 on a CPU is asked for, and reaches every forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unbackdoor.language_model.precision import autocast, compute_in, computes_in_bfloat16
from unbackdoor.settings import preset_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    compute_in("auto")


def product() -> torch.Tensor:
    with autocast(CPU):
        return torch.ones(2, 2) @ torch.ones(2, 2)


def test_a_cpu_computes_in_float32_unless_asked() -> None:
    assert product().dtype == torch.float32
    assert computes_in_bfloat16(torch.device("cuda"))


def test_bfloat16_is_asked_for_and_given_back() -> None:
    compute_in("bfloat16")
    assert product().dtype == torch.bfloat16
    compute_in("float32")
    assert product().dtype == torch.float32
    assert not computes_in_bfloat16(torch.device("cuda"))


def test_a_preset_by_size() -> None:
    sizes = [500_000, 2_000_000, 135_000_000, 1_900_000_000, 7_000_000_000]
    assert [preset_for(size) for size in sizes] == ["tiny", "micro", "small", "small", "large"]
