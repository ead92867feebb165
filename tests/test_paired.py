"""A comparison before and after on the same prompts says no more than the prompts allow."""

from __future__ import annotations

import itertools
import math
import random
import runpy
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.evaluation.paired import (
    Difference,
    McNemar,
    binomial,
    enough_prompts,
    holm,
    least_detectable,
    mcnemar,
    mid_p,
    paired_bootstrap,
)
from unbackdoor.evaluation.statistics import wilson

TABLES = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "statistics_tables.py"))


def pairs(both: int, only_before: int, only_after: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Outcomes before and after with these counts, in an order that mixes them."""
    cells = [(True, True)] * both + [(True, False)] * only_before + [(False, True)] * only_after
    cells += [(False, False)] * neither
    random.Random(0).shuffle(cells)
    return [b for b, _ in cells], [a for _, a in cells]


# McNemar's test ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_before", "only_after", "p_value"),
    [
        (1, 7, 0.0390625),  # Fagerland et al. 2013, the data of Bentur et al.: 0.0703 exact, 0.0391 mid-p
        (0, 0, 1.0),
        (0, 1, 0.5),
        (0, 5, 1 / 32),
        (3, 3, 1 - 0.5 * 20 / 64),
        (0, 200, 2.0**-200),
    ],
)
def test_mcnemar_s_test_has_its_known_values(only_before: int, only_after: int, p_value: float) -> None:
    before, after = pairs(1, only_before, only_after, 12)
    n = 13 + only_before + only_after
    assert mcnemar(before, after) == McNemar(n, only_before, only_after, pytest.approx(p_value, rel=1e-12))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_mid_p_value_is_half_of_the_observed_and_all_of_the_more_extreme(one: int, other: int) -> None:
    changed, distance = one + other, abs(one - other)
    expected = Fraction(0)
    for k in range(changed + 1):
        weight = Fraction(math.comb(changed, k), 2**changed)
        expected += weight * (abs(2 * k - changed) > distance) + weight * (abs(2 * k - changed) == distance) / 2
    assert mid_p(one, other) == pytest.approx(float(expected) if changed else 1.0, rel=1e-12)
    assert mid_p(one, other) == mid_p(other, one)


@pytest.mark.parametrize("changed", [1, 2, 9, 10, 51])
def test_the_more_one_sided_the_change_the_smaller_the_p_value(changed: int) -> None:
    values = [mid_p(k, changed - k) for k in range(changed // 2 + 1)]
    assert values == sorted(set(values))
    assert all(0 < value <= 1 for value in values)


def test_pairs_that_agree_change_no_p_value() -> None:
    assert mcnemar(*pairs(0, 4, 13, 0)).p_value == mcnemar(*pairs(70, 4, 13, 900)).p_value < 0.05


def test_many_changed_pairs_neither_overflow_nor_lose_the_value() -> None:
    assert mid_p(0, 5000) == 0.0
    z = 100 / math.sqrt(5000)  # so many that the normal approximation holds
    assert mid_p(2450, 2550) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    with pytest.raises(ValueError, match="changed pairs"):
        mid_p(-1, 3)


def test_the_test_rejects_about_as_often_as_it_says_where_nothing_changed() -> None:
    found = {changed: TABLES["false_positives"](changed) for changed in range(10, 101)}
    # Counts are discrete, so four of them leave the band; the worst is known exactly.
    assert [m for m, error in found.items() if not 0.02 <= error <= 0.065] == [11, 16, 36, 43]
    assert max(found.values()) == found[16] == pytest.approx(2 * sum(math.comb(16, k) for k in range(5)) / 2**16)
    assert found[16] < 0.077


@pytest.mark.parametrize(("n", "share"), [(100, 0.1), (100, 0.5), (100, 1.0), (200, 0.05), (200, 0.2), (200, 1.0)])
def test_over_prompts_the_test_keeps_its_level(n: int, share: float) -> None:
    assert 0.035 < TABLES["false_positives_among"](n, share) < 0.058


# The bootstrap -------------------------------------------------------------------------------------------------------


def enumerated(differences: list[int], level: float) -> tuple[float, float]:
    """The bootstrap's interval from every resample there is."""
    sums = sorted(sum(resample) for resample in itertools.product(differences, repeat=len(differences)))
    outside = int((1 - level) / 2 * len(sums))
    return sums[outside] / len(differences), sums[-1 - outside] / len(differences)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("counts", [(1, 3, 1, 1), (0, 4, 0, 2), (2, 0, 1, 3), (0, 2, 3, 1), (1, 0, 5, 0)])
def test_counts_are_resampled_as_all_resamples_would_be(counts: tuple[int, int, int, int], level: float) -> None:
    before, after = pairs(*counts)
    differences = [a - b for b, a in zip(before, after, strict=True)]
    found = paired_bootstrap(before, after, draws=50_000, level=level)
    assert found.interval == pytest.approx(enumerated(differences, level))
    assert found.value == pytest.approx(sum(differences) / 6)


@pytest.mark.parametrize("counts", [(10, 60, 5, 25), (3, 1, 0, 96), (0, 99, 0, 1), (50, 20, 20, 10)])
def test_counts_are_resampled_as_prompts_would_be(counts: tuple[int, int, int, int]) -> None:
    before, after = pairs(*counts)
    found = paired_bootstrap(before, after, draws=4000)
    # Differences of 3 and −3 take the plain way, prompt by prompt.
    plain = paired_bootstrap([3 * b for b in before], [3 * a for a in after], draws=4000)
    assert [3 * end for end in found.interval] == pytest.approx(plain.interval, abs=3 * 0.0101)
    assert 3 * found.value == pytest.approx(plain.value)


def test_the_interval_is_about_the_normal_one_where_that_holds() -> None:
    before, after = pairs(800, 2200, 600, 400)
    found = paired_bootstrap(before, after)
    error = math.sqrt((0.7 - 0.4**2) / 4000)
    assert found.value == -0.4
    assert found.interval == pytest.approx((-0.4 - 1.96 * error, -0.4 + 1.96 * error), abs=0.1 * error)
    noise = random.Random(1)
    values = [noise.gauss(2.0, 1.0) for _ in range(200)]
    numbers = paired_bootstrap([0.0] * 200, values, draws=4000)
    mean = sum(values) / 200
    error = math.sqrt(sum((v - mean) ** 2 for v in values)) / 200
    assert numbers.value == pytest.approx(mean)
    assert numbers.interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)


def test_pairing_is_what_narrows_the_interval() -> None:
    before = [float(k) for k in range(40)]
    together = paired_bootstrap(before, [b + 0.5 + 0.1 * (k % 2) for k, b in enumerate(before)], draws=500)
    apart = paired_bootstrap(before, [b + 0.5 for b in reversed(before)], draws=500)
    assert width(together) < 0.1 < 1 < width(apart)


def width(found: Difference) -> float:
    return found.interval[1] - found.interval[0]


@pytest.mark.parametrize("scale", [1, 0.3])
def test_the_seed_alone_decides_the_draws(scale: float) -> None:
    before, after = ([scale * one for one in side] for side in pairs(5, 40, 13, 42))

    def found(**options: Any) -> Difference:
        return paired_bootstrap(before, after, draws=401, **options)

    state = random.getstate()
    assert found() == found(seed=0)
    assert random.getstate() == state
    assert len({found(seed=seed).interval for seed in range(8)}) > 1
    assert width(found(level=0.5)) < width(found(level=0.95)) < width(found(level=0.999))
    swapped = paired_bootstrap(after, before, draws=401)
    assert swapped.value == -found().value
    assert swapped.interval == pytest.approx((-found().interval[1], -found().interval[0]), abs=0.05 * scale)


def test_where_all_pairs_change_alike_the_interval_has_no_width() -> None:
    assert paired_bootstrap([True] * 9, [False] * 9) == Difference(-1.0, (-1.0, -1.0))
    assert paired_bootstrap([True, False], [True, False]) == Difference(0.0, (0.0, 0.0))
    assert paired_bootstrap([0.25], [0.75]) == Difference(0.5, (0.5, 0.5))


@pytest.mark.parametrize("n", [0, 1, 7, 40])
@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
def test_binomial_probabilities_are_exact(n: int, p: float) -> None:
    exact = [math.comb(n, k) * Fraction(p) ** k * Fraction(1 - p) ** (n - k) for k in range(n + 1)]
    assert binomial(n, p) == pytest.approx([float(one) for one in exact], rel=1e-10)
    assert sum(binomial(20 * n, p)) == pytest.approx(1)


# Wilson's interval, seeds and sample sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [100, 200, 500])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_wilson_s_interval_covers_ordinary_rates_as_it_says(p: float, n: int) -> None:
    assert 0.93 <= TABLES["coverage"](p, n) <= 0.97
    assert TABLES["coverage"](p, n) == pytest.approx(TABLES["coverage"](1 - p, n))


def test_wilson_s_interval_covers_rare_rates_less_often() -> None:
    # One hit of 100 excludes a rate of 0.1%, so only 0.999 ** 100 is covered: the tables say so.
    assert TABLES["coverage"](0.001, 100) == pytest.approx(0.999**100)


def test_the_tables_are_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    TABLES["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert "| 30% | 93.72% | 94.66% | 95.47% |" in lines
    assert "| 100 | 3.70% |" in lines
    assert Counter(line.count("|") for line in lines if line.startswith("| ")) == {5: 11 + 7, 3: 4, 12: 7}
    assert "From 10 to 60 pairs: 2.15% (10 pairs) to 7.68% (16 pairs)." in lines


def test_no_hit_still_allows_a_rate_that_falls_with_n() -> None:
    assert least_detectable(100) == pytest.approx(0.037, abs=5e-5)
    assert least_detectable(100) == pytest.approx(wilson(0, 100)[1], rel=1e-12)
    assert least_detectable(100, level=0.99) == pytest.approx(2.575829304**2 / (100 + 2.575829304**2))
    assert least_detectable(0) == 1.0
    allowed = [least_detectable(n) for n in range(300)]
    assert allowed == sorted(set(allowed), reverse=True)


def test_a_claim_on_too_few_prompts_is_warned_of() -> None:
    assert enough_prompts(0.02, 100) == "0 of 100 prompts still allow 3.7%: at most 2% takes 189 prompts."
    assert enough_prompts(0.05, 100) == ""
    assert enough_prompts(0.05, 100, level=0.999) != ""
    assert enough_prompts(1, 0) == ""


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(0, 1000))
def test_the_warning_names_the_fewest_prompts_that_are_enough(rate: float, n: int) -> None:
    warning = enough_prompts(rate, n)
    assert (warning == "") == (least_detectable(n) <= rate)
    if warning:
        needed = int(warning.split()[-2])
        assert needed > n
        assert enough_prompts(rate, needed) == ""
        assert enough_prompts(rate, needed - 1) != ""


# Holm's correction ---------------------------------------------------------------------------------------------------


def test_holm_s_correction_has_its_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02]
    assert holm([0.9, 0.8, 0.0]) == [1.0, 1.0, 0.0]
    assert holm([0.03, 0.03]) == [0.06, 0.06]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_s_correction_rejects_as_its_steps_do(p_values: list[float], level: float) -> None:
    rejected: set[int] = set()
    for place in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if (len(p_values) - len(rejected)) * p_values[place] > level:
            break
        rejected.add(place)
    adjusted = holm(p_values)
    assert {place for place, value in enumerate(adjusted) if value <= level} == rejected
    assert all(given_value <= value <= 1 for given_value, value in zip(p_values, adjusted, strict=True))
    assert holm(p_values[::-1]) == adjusted[::-1]


# Inputs that mean nothing --------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no pairs": (lambda: mcnemar([], []), "0 outcomes before and 0 after are no pairs"),
    "more after than before": (lambda: mcnemar([True], [True, False]), "1 outcomes before and 2 after"),
    "no pairs to resample": (lambda: paired_bootstrap([], []), "no pairs"),
    "more before than after": (lambda: paired_bootstrap([0.5, 1.0], [0.5]), "2 outcomes before and 1 after"),
    "not a number": (lambda: paired_bootstrap([0.5, math.nan], [0.5, 1.0]), "not a finite number"),
    "infinite": (lambda: paired_bootstrap([0.5, 1.0], [0.5, math.inf]), "not a finite number"),
    "no draws": (lambda: paired_bootstrap([True], [False], draws=0), "0 draws"),
    "a level in percent": (lambda: paired_bootstrap([True], [False], level=95), "not between 0 and 1"),
    "a level of 0": (lambda: least_detectable(100, level=0), "not between 0 and 1"),
    "fewer than no prompts": (lambda: least_detectable(-1), "0 hits of -1"),
    "a claim of zero": (lambda: enough_prompts(0, 100), "cannot be claimed"),
    "a claim in percent": (lambda: enough_prompts(5, 100), "cannot be claimed"),
    "no p-values": (lambda: holm([]), "no p-values"),
    "no probability": (lambda: holm([0.2, 1.2]), "no p-values"),
    "a p-value that is no number": (lambda: holm([math.nan, 0.2]), "no p-values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_inputs_that_mean_nothing_are_refused(name: str) -> None:
    call, reason = WRONG[name]
    with pytest.raises(ValueError, match=reason):
        call()
