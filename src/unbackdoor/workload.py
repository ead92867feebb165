"""What a run computes, counted in rows: what methods and attacks say of themselves before anything is loaded."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Work:
    """What a run computes, in rows."""

    trained: float = 0.0
    """Forward and backward through all weights, or LoRA's."""
    fitted: float = 0.0
    """Forward and backward through frozen weights, for a perturbation."""
    read: float = 0.0
    """Forward."""
    answers: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * a for a in astuple(self)))
