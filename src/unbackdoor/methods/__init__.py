"""Removal methods: one file each, with its settings, what it must be given, and its `run`.

A new one is a file, and its line in `METHODS`. Nothing here imports torch until a method runs.
"""

from __future__ import annotations

from unbackdoor.methods.parts.method import Method
from unbackdoor.named_classes import named

METHODS = {
    "osft": "osft:Osft",
    "sande": "sande:Sande",
    "beear": "beear:Beear",
    "unlearn": "unlearn:Unlearn",
    "fine-mixing": "fine_mixing:FineMixing",
    "dpo": "dpo:Dpo",
    "nad": "nad:Nad",
    "crow": "crow:Crow",
    "lat": "lat:Lat",
    "average": "average:Average",
    "prune": "prune:Prune",
    "quantise": "quantise:Quantise",
    "fine-tune": "fine_tune:FineTune",
    "random-perturbation": "random_perturbation:RandomPerturbation",
}
"""Name → module of this package and class, imported when it is asked for."""


def method_class(given: str) -> type[Method]:
    """The method of that name, or a user's own as `FILE.py:NAME`. Raises `UserError` with the names there are."""
    found: type[Method] = named(given, "method", METHODS, __name__, Method)
    return found


def method_classes() -> list[type[Method]]:
    """All of ours, in the registry's order."""
    return [method_class(name) for name in METHODS]
