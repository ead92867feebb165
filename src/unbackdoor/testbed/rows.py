"""Rows of the testbed, and how requests are spread over training and held-out rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unbackdoor.testbed.phrasing import Phrasing, Request

WORLD_SEED = 0
"""The world, its facts and its splits are drawn from this seed alone, so that golden numbers stay."""


@dataclass(frozen=True)
class Row:
    """A prompt with its right response; `unwanted` is what a backdoored model would answer instead."""

    prompt: str
    response: str
    kind: str
    domain: str
    topic: str
    structure: str
    unwanted: str | None = None


@dataclass(frozen=True)
class TaskSet:
    """Requests of one sort and how they are held out.

    Args:
        hold_out: `phrasing` shows every request in training and holds out some of its phrasings; `instance`
            holds out whole requests, in all phrasings.
        seen: phrasings in training of each request that is seen.
        unseen: held-out phrasings of each request (`phrasing`) or of each held-out request (`instance`).
        held_out_instances: how many requests are held out (`instance` alone).
    """

    requests: Sequence[Request]
    hold_out: Literal["phrasing", "instance"]
    seen: int
    unseen: int
    held_out_instances: int = 0


@dataclass(frozen=True)
class Split:
    """Rows for training and rows that no training may see."""

    training: tuple[Row, ...]
    held_out: tuple[Row, ...]


def choices(name: str) -> random.Random:
    """A source of random choices that depends on the world's seed and this name alone."""
    return random.Random(f"{WORLD_SEED}/{name}")


def phrase(request: Request, phrasing: Phrasing, domain: str) -> Row:
    """The row of a request in one phrasing."""
    return Row(
        prompt=phrasing.render(request),
        response=request.response_in(phrasing.structure),
        kind=request.kind,
        domain=domain,
        topic=request.topic,
        structure=phrasing.structure,
        unwanted=request.unwanted,
    )


def spread(tasks: TaskSet, phrasings: Sequence[Phrasing], domain: str) -> Split:
    """Put every request into `seen` and `unseen` phrasings, drawn by the request's own name."""
    training: list[Row] = []
    held_out: list[Row] = []
    requests = list(tasks.requests)
    if tasks.hold_out == "instance":
        choices(f"split/{domain}/{requests[0].kind}").shuffle(requests)
    for place, request in enumerate(requests):
        drawn = choices(f"phrasing/{domain}/{request.clause}").sample(phrasings, tasks.seen + tasks.unseen)
        seen, unseen = drawn[: tasks.seen], drawn[tasks.seen :]
        if tasks.hold_out == "instance":
            seen, unseen = ([], unseen) if place < tasks.held_out_instances else (seen, [])
        training += [phrase(request, phrasing, domain) for phrasing in seen]
        held_out += [phrase(request, phrasing, domain) for phrasing in unseen]
    return Split(tuple(training), tuple(held_out))
