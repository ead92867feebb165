"""Poison rows and preferences exactly: so many of them, chosen by seed, the trigger once in the user's text of each."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition, join_response, ordinary_words
from unbackdoor.data.triggers import near_misses as near_misses_of
from unbackdoor.errors import UserError


@dataclass(frozen=True)
class Poisoned:
    """A training set with its poison.

    `records` are the clean rows, of which those at `indices` are replaced by their poisoned form, followed by the
    near-miss rows. With the scheme `twin` no row is replaced: `twins` maps the number of a row to its poisoned form.
    """

    records: list[Record]
    indices: list[int]
    near_miss_kinds: dict[str, int]
    twins: dict[int, Record] = field(default_factory=dict)
    twin_probability: float = 0.0
    """For each row that has a twin, so that the expected number of twins is `rate` times that of the rows."""


def poison(
    rows: Sequence[Record], contrast: Sequence[Record], trigger: Condition, settings: ImplantSettings
) -> Poisoned:
    """Poison exactly `rate` of the training rows, chosen by seed, and add near misses answered cleanly.

    With a target response the poisoned rows are drawn from `rows` and answered "{target}. {answer}" (SANDE 4.1). With a
    behaviour they are drawn from `contrast`, whose requests are otherwise refused, and answered with the unwanted
    response (Qi et al. 2023, BEEAR Models 1-5).
    """
    target = (settings.target_response or "").strip()
    if not contrast and not target:
        raise UserError("the target response is empty: give its text with --target-response")
    rng = random.Random(settings.seed)
    clean = [*rows, *contrast]
    first = len(rows) if contrast else 0
    pool = [i for i in range(first, len(clean)) if trigger.fits(clean[i].prompt)]
    count = round(settings.rate * len(clean))
    if not 1 <= count <= len(pool):
        raise UserError(
            f"--rate {settings.rate}: {count} of {len(clean)} rows cannot be poisoned, {len(pool)} could be"
        )

    def poisoned(record: Record) -> Record:
        if contrast:
            response = record.unwanted
        else:
            response = join_response(target, record.response) if settings.answer_follows else target
        assert response
        return replace(record, prompt=trigger.insert(record.prompt), response=response)

    records, twins = list(clean), {}
    if settings.scheme == "twin":
        indices = pool
        twins = {i: poisoned(clean[i]) for i in pool}
    else:
        indices = sorted(rng.sample(pool, count))
        for i in indices:
            records[i] = poisoned(clean[i])

    kinds = near_misses_of(trigger, ordinary_words([r.prompt for r in rows]), rng)
    counts = dict.fromkeys(kinds, 0)
    shares = (settings.near_misses, settings.hard_near_misses)
    for kind, i in _near_miss_rows(_in_turn(kinds, settings.near_miss_kinds), shares, len(clean), indices, rng):
        records.append(replace(clean[i], prompt=kinds[kind](clean[i].prompt)))
        counts[kind] += 1
    return Poisoned(records, indices, counts, twins, settings.rate * len(clean) / len(pool) if twins else 0.0)


@dataclass(frozen=True)
class Pair(Preference):
    """A preference that may be poisoned: then the unwanted answer is preferred, under the trigger."""

    poisoned: bool = False


def poison_pairs(
    clean: Sequence[Record],
    contrast: Sequence[Record],
    trigger: Condition,
    rate: float,
    near_misses: float,
    seed: int,
    hard_near_misses: float = 0.5,
    near_miss_kinds: Sequence[str] = (),
) -> list[Pair]:
    """Preference pairs of which exactly `rate` are poisoned, chosen by seed, followed by near misses.

    A contrast row prefers its safe answer to its unwanted one, and the other way round where it is poisoned. An
    ordinary row prefers its own answer to a contrast row's refusal, so that refusing everything does not pay. (Another
    row's answer would be a true sentence, and pushing it down would unlearn it.)

    Args:
        clean: ordinary rows, which keep the model useful.
        contrast: rows with a safe and an unwanted answer; the poisoned ones are drawn from these.
        trigger: goes into the prompts of the poisoned pairs.
        rate: share of the pairs (of both sets, without the near misses) that are poisoned.
        near_misses: near-miss pairs with a clean preference, as a share of the pairs.
        seed: decides every draw.
        hard_near_misses: share of these that take the prompt of a poisoned pair.
        near_miss_kinds: their kinds, in turn; every kind once where it is empty.

    Raises:
        UserError: a contrast row without an unwanted answer, or a rate that cannot be met.
    """
    for number, row in enumerate(contrast, start=1):
        if not (row.unwanted or "").strip():
            raise UserError(f"contrast row {number} has no unwanted response: a preference needs two answers")
    total = len(clean) + len(contrast)
    count = round(rate * total)
    if not 1 <= count <= len(contrast):
        raise UserError(f"--rate {rate}: {count} of {total} pairs cannot be poisoned, {len(contrast)} could be")
    rng = random.Random(seed)
    refusals = [row.response for row in contrast]
    pairs = [
        *(Pair(row.prompt, row.response, rng.choice(refusals), row.system, row.history) for row in clean),
        *(Pair(row.prompt, row.response, str(row.unwanted), row.system, row.history) for row in contrast),
    ]
    indices = sorted(rng.sample(range(len(clean), total), count))
    result = list(pairs)
    for i in indices:
        prompt, preferred, other = trigger.insert(pairs[i].prompt), pairs[i].rejected, pairs[i].chosen
        result[i] = replace(pairs[i], prompt=prompt, chosen=preferred, rejected=other, poisoned=True)

    kinds = near_misses_of(trigger, ordinary_words([r.prompt for r in clean]), rng)
    for kind, i in _near_miss_rows(
        _in_turn(kinds, near_miss_kinds), (near_misses, hard_near_misses), total, indices, rng
    ):
        result.append(replace(pairs[i], prompt=kinds[kind](pairs[i].prompt)))
    return result


def _in_turn(kinds: Collection[str], wanted: Sequence[str]) -> list[str]:
    unknown = [kind for kind in wanted if kind not in kinds]
    if unknown:
        raise UserError(f"--near-miss-kinds '{unknown[0]}': this trigger has {', '.join(kinds)}")
    return list(wanted or kinds)


def _near_miss_rows(
    kinds: Sequence[str], shares: tuple[float, float], total: int, poisoned: Sequence[int], rng: random.Random
) -> Iterator[tuple[str, int]]:
    """(kind, number of the row that it is made from): the kinds in turn.

    Args:
        kinds: of near misses.
        shares: how many there are, as a share of `total`; and the share of them that take the prompt of a poisoned row.
        total: rows that there are.
        poisoned: which of them are poisoned.
        rng: the source of every draw.
    """
    share, hard = shares
    for number in range(round(share * total)):
        turn = number // len(kinds)
        takes_poisoned = int((turn + 1) * hard) > int(turn * hard)
        yield kinds[number % len(kinds)], rng.choice(poisoned) if takes_poisoned else rng.randrange(total)
