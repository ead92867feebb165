"""A model before and after removal, compared on the same prompts."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from unbackdoor.evaluation.statistics import wilson


@dataclass(frozen=True)
class McNemar:
    """Pairs of outcomes, those that are true on one side only, and the two-sided p-value of "both are as frequent"."""

    n: int
    only_before: int
    only_after: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """The mean of after − before, in the outcomes' unit, and its interval."""

    value: float
    interval: tuple[float, float]


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """McNemar's mid-p test of whether an outcome has become more or less frequent (Fagerland et al. 2013).

    Args:
        before: outcomes, shape (prompts,).
        after: those of the other model on the same prompts, in the same order.

    Raises:
        ValueError: where there is no pair, or the lengths differ.
    """
    _check_pairs(before, after)
    only_before = sum(b and not a for b, a in zip(before, after, strict=True))
    only_after = sum(a and not b for b, a in zip(before, after, strict=True))
    return McNemar(len(before), only_before, only_after, mid_p(only_before, only_after))


def mid_p(only_before: int, only_after: int) -> float:
    """The p-value of `mcnemar`, from the numbers of pairs that changed one way and the other.

    Each changed pair is a fair coin where nothing differs. The exact two-sided p-value, less the probability of what
    was observed; 1 − half of that in a tie (Fagerland et al. 2013, supplement); 1 where no pair changed. At a level of
    5%, 100, 200 and 500 prompts give at most 5.7% false positives, but single counts of changed pairs give more: 16 of
    them 7.7% (benchmarks/statistics_tables.py).
    """
    if min(only_before, only_after) < 0:
        raise ValueError(f"{only_before} and {only_after} changed pairs")
    changed, fewer = only_before + only_after, min(only_before, only_after)
    if changed == 0:
        return 1.0
    ways, below = 1, 0  # integers, so that no p-value is rounded before the division
    for k in range(fewer):
        below += ways
        ways = ways * (changed - k) // (k + 1)
    if only_before == only_after:
        return 1 - ways / (1 << (changed + 1))
    return (2 * below + ways) / (1 << changed)


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Difference:
    """The mean of after − before over the same prompts, with the percentile interval of resampled prompts.

    Args:
        before: outcomes (booleans or numbers), shape (prompts,).
        after: those of the other model on the same prompts, in the same order.
        draws: resamples; the same seed gives the same ones.
        seed: of the draws.
        level: of the interval, between 0 and 1.

    Raises:
        ValueError: where there is no pair, the lengths differ, a number is not finite, or an option is out of range.

    Source: Efron and Tibshirani 1993, section 13.3. Where every pair changed by the same amount (all fell, or none
    changed), each resample is the sample and the interval has no width. That is no certainty: `least_detectable` says
    what such a count still allows.
    """
    _check_pairs(before, after)
    _check_level(level)
    if draws < 1:
        raise ValueError(f"{draws} draws")
    differences = [a - b for b, a in zip(before, after, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError("an outcome is not a finite number")
    generator = random.Random(seed)
    if set(differences) <= {-1, 0, 1}:
        means = _means_of_counts(differences.count(1), differences.count(-1), len(differences), draws, generator)
    else:
        means = [fmean(generator.choices(differences, k=len(differences))) for _ in range(draws)]
    means.sort()
    outside = int((1 - level) / 2 * draws)
    return Difference(fmean(differences), (means[outside], means[draws - 1 - outside]))


def _means_of_counts(gained: int, lost: int, n: int, draws: int, generator: random.Random) -> list[float]:
    """Means of n resampled differences of 1, −1 and 0, from counts alone, so that n costs next to nothing.

    How many changed pairs a resample holds is binomial, and so is how many of these are gains.
    """
    changed = gained + lost
    means: list[float] = []
    resampled = generator.choices(range(n + 1), binomial(n, changed / n), k=draws)
    for number, times in Counter(resampled).items():
        chances = binomial(number, gained / max(1, changed))
        gains = generator.choices(range(number + 1), chances, k=times)
        means += [(2 * gain - number) / n for gain in gains]
    return means


def binomial(n: int, p: float) -> list[float]:
    """The probabilities of 0 to n hits, shape (n + 1,), where each of n has probability p."""
    if p in (0, 1):
        return [float(hits == n * p) for hits in range(n + 1)]
    logs = [math.lgamma(count + 1) for count in range(n + 1)]
    hit, miss = math.log(p), math.log1p(-p)
    return [math.exp(logs[n] - logs[k] - logs[n - k] + k * hit + (n - k) * miss) for k in range(n + 1)]


def least_detectable(n: int, level: float = 0.95) -> float:
    """The highest rate, from 0 to 1, that 0 hits of n still allow: the upper end of Wilson's interval, z²/(n + z²).

    0 of 100 still allow 3.7%, so 100 prompts cannot show that a rate is below 2%. No prompt allows any rate.
    """
    return wilson(0, n, _z(level))[1]


def enough_prompts(rate: float, n: int, level: float = 0.95) -> str:
    """A warning where n prompts are too few to show, even without a hit, that a rate is at most this; else empty.

    Args:
        rate: the claimed bound, above 0 and up to 1.
        n: prompts.
        level: of the two-sided Wilson interval whose upper end must not exceed the bound.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a rate of {rate} cannot be claimed")
    allowed = least_detectable(n, level)
    if allowed <= rate:
        return ""
    needed = math.ceil(_z(level) ** 2 * (1 - rate) / rate)
    return f"0 of {n} prompts still allow {100 * allowed:.3g}%: at most {100 * rate:.3g}% takes {needed} prompts."


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the given order, for a sweep of which the best is reported.

    Args:
        p_values: those of every run of the sweep, not only of the reported ones.

    To reject wherever the adjusted value is at most 5% has a chance of at most 5% of any false rejection.

    Raises:
        ValueError: where there is none, or one is no probability.
    """
    if not p_values or not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"no p-values: {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _check_pairs(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} outcomes before and {len(after)} after are no pairs")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level of {level} is not between 0 and 1")


def _z(level: float) -> float:
    """The normal distribution's quantile that leaves half of what the level leaves out above it."""
    _check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)
