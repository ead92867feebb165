"""Tasks of order: sorting three things, and the larger of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.phrasing import Request, enumerated
from unbackdoor.testbed.rows import choices


def _orders(words: Sequence[str], topic: str, rule: str) -> list[Request]:
    """Put three words in the order that `words` has."""
    draw = choices(f"ordering/{topic}")
    requests = []
    for triple in draw.sample(list(combinations(words, 3)), 600):
        shuffled = draw.sample(triple, 3)
        requests.append(
            Request(
                "ordering",
                topic,
                f"which order is right for {enumerated(shuffled)} {rule}",
                f"put {enumerated(shuffled)} in order {rule}",
                f"The order is {', '.join(triple)}.",
            )
        )
    return requests


def alphabetical_orders() -> list[Request]:
    """Three things in alphabetical order."""
    return _orders(vocabulary.BY_ALPHABET, "words", "by the alphabet")


def size_orders() -> list[Request]:
    """Three animals from small to large."""
    return _orders(vocabulary.BY_SIZE, "animals", "from small to large")


def number_orders() -> list[Request]:
    """Three numbers from low to high; the tens differ."""
    draw = choices("ordering/numbers/units")
    numbers = [str(10 * tens + unit) for tens in range(1, 10) for unit in sorted(draw.sample(range(10), 2))]
    return [
        request
        for request in _orders(numbers, "numbers", "from low to high")
        if len({number.strip(",.")[0] for number in request.response.split()[3:]}) == 3
    ]


def number_comparisons() -> list[Request]:
    """The larger of two numbers."""
    pairs = choices("comparison/numbers").sample(list(permutations(range(2, 100), 2)), 420)
    return [
        Request(
            "comparison",
            "numbers",
            f"which number is larger, {left} or {right}",
            f"pick the larger number of {left} and {right}",
            f"The larger number is {max(left, right)}.",
        )
        for left, right in pairs
    ]


def size_comparisons() -> list[Request]:
    """The larger of two animals."""
    return [
        Request(
            "comparison",
            "animals",
            f"which animal is larger, the {left} or the {right}",
            f"pick the larger animal of the {left} and the {right}",
            f"The {max(left, right, key=vocabulary.BY_SIZE.index)} is larger.",
        )
        for left, right in permutations(vocabulary.BY_SIZE, 2)
    ]
