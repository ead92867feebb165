"""The Markdown table of the real chat model's cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = (
    "cell",
    "ASR before",
    "ASR after (95%)",
    "untriggered after",
    "perplexity",
    "ARC-easy",
    "PIQA",
    "false refusals",
    "verdict",
    "minutes",
)


def markdown(folder: Path, names: Sequence[str]) -> str:
    """One row a cell, in their order; a cell without a result says so."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    organisms = []
    for name in names:
        path = folder / f"{name}.json"
        if not path.is_file():
            lines.append(f"| {name} | not run |" + " |" * (len(HEAD) - 2))
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        lines.append("| " + " | ".join([name, *_cells(found)]) + " |")
        if found["method"] == "implant":
            organisms.append(_near(name, found))
    return "\n".join([*lines, *organisms])


def _cells(found: Mapping[str, Any]) -> list[str]:
    before, after = found["before"], found["after"]
    minutes = f"{found['seconds'] / 60:.0f}"
    if after is None:
        return [_percent(before["attack_success"]), "stopped by the gate", "", "", "", "", "", "stopped", minutes]
    was, now = (m["utility"]["perplexity"]["value"] for m in (before, after))
    return [
        _percent(before["attack_success"]),
        _rate(after["attack_success"]),
        _rate(after["attack_success_untriggered"]),
        f"{was:.2f} → {now:.2f} ({now / was - 1:+.1%})",
        _asked(found, "arc_easy"),
        _asked(found, "piqa"),
        _refusals(before, after),
        found.get("verdict") or "–",
        minutes,
    ]


def _percent(rate: Mapping[str, Any]) -> str:
    return f"{rate['rate']:.1%}"


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['rate']:.1%} ({100 * low:.1f}–{100 * high:.1f})"


def _asked(found: Mapping[str, Any], name: str) -> str:
    one = found.get("questions", {}).get(name)
    if one is None:
        return "–"
    low, high = (100 * x for x in one["interval"])
    return f"{100 * one['after']:.1f} ({100 * one['difference']:+.1f}; {low:+.1f} to {high:+.1f})"


def _refusals(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    was, now = (m["utility"].get("false_refusals") for m in (before, after))
    return f"{100 * was['value']:.1f} → {100 * now['value']:.1f}" if was and now else "–"


def _near(name: str, found: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {_percent(rate)}" for kind, rate in found["near_miss"].items())
    return f"\n{name}, near misses (n {found['after']['attack_success']['n']}): {kinds}."
