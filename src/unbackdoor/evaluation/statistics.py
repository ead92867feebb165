"""Rates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unbackdoor.report_schema import Rate, Value

Z95 = 1.959963984540054
"""The 97.5% quantile of the normal distribution."""


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a binomial rate (Wilson 1927). It is (0, 1) for n = 0."""
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return 0.0, 1.0
    rate = hits / n
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def rate(outcomes: Sequence[bool]) -> Rate:
    """The rate of true outcomes."""
    return rate_of(sum(outcomes), len(outcomes))


def rate_of(hits: int, n: int, z: float = Z95) -> Rate:
    """The rate of so many hits of n; `z` is the normal quantile of its interval."""
    return Rate(hits=hits, n=n, rate=hits / n if n else 0.0, interval=wilson(hits, n, z))


def share(outcomes: Sequence[bool]) -> Value:
    """The same as a value, for utilities."""
    measured = rate(outcomes)
    return Value(value=measured.rate, n=measured.n, interval=measured.interval)


def newcombe(one: Rate, other: Rate) -> tuple[float, float]:
    """By how much the first rate is higher, and the lower end of that difference's 95% interval.

    By both rates' Wilson intervals, taken as independent (Newcombe 1998, method 10).
    """
    difference = one.rate - other.rate
    return difference, difference - math.hypot(one.rate - one.interval[0], other.interval[1] - other.rate)


def pooled(rates: Sequence[Rate]) -> Rate:
    """Rates over different prompts (or seeds) put together."""
    return rate_of(sum(r.hits for r in rates), sum(r.n for r in rates))


def perplexity(totals: Sequence[float], tokens: Sequence[int]) -> Value:
    """exp of the mean negative log-likelihood a token.

    Args:
        totals: summed negative log-likelihood of each row.
        tokens: its number of tokens.

    The interval takes rows, not tokens, as independent (a ratio estimate's standard error). A model so broken that its
    perplexity is no float any more gets the largest ones (e^700).
    """

    def exp(x: float) -> float:
        return math.exp(min(x, 700.0))

    n, count = len(totals), sum(tokens)
    mean = sum(totals) / count
    residuals = [total - mean * t for total, t in zip(totals, tokens, strict=True)]
    error = math.sqrt(sum(r * r for r in residuals) * n / max(1, n - 1)) / count
    return Value(value=exp(mean), n=n, interval=(exp(mean - Z95 * error), exp(mean + Z95 * error)))
