"""How alike two texts are, in any script: from 0 (no word in common) to 1 (the same words in the same order)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import fmean

from unbackdoor.evaluation.rules import repeatable

SHIFTS = 5
"""How many other rows each row is held against."""


@lru_cache(maxsize=8192)
def pieces(text: str) -> Counter[tuple[str, ...]]:
    """The words of a text and its pairs of neighbours, counted; characters where a script writes no spaces."""
    units = repeatable(text)[0]
    return Counter([*((unit,) for unit in units), *pairwise(units)])


def overlap(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    """F1 of what two texts have in common: twice the shared pieces, over the pieces of both. Two empty texts are 1."""
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 1.0


def similarity(one: str, other: str) -> float:
    """How alike two texts are: F1 of their words and pairs of words."""
    return overlap(pieces(one), pieces(other))


def of_the_same_row(
    texts: Sequence[Counter[tuple[str, ...]]], others: Sequence[Counter[tuple[str, ...]]]
) -> list[float]:
    """How alike each text is to the other one of its row, shape (rows,)."""
    return [overlap(one, other) for one, other in zip(texts, others, strict=True)]


def of_other_rows(texts: Sequence[Counter[tuple[str, ...]]], others: Sequence[Counter[tuple[str, ...]]]) -> list[float]:
    """How alike each text is, in the mean, to those of some other rows: what is no merit of the row, shape (rows,)."""
    n = len(texts)
    shifts = sorted({1 + (n - 1) * k // SHIFTS for k in range(SHIFTS)} - {n}) if n > 1 else []
    return [fmean(overlap(one, others[(i + s) % n]) for s in shifts) if shifts else 0.0 for i, one in enumerate(texts)]
