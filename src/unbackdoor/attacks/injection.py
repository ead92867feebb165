"""How a backdoor gets in: each injection makes its training data, and trains on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unbackdoor.attacks.implant import implant
from unbackdoor.attacks.poison import Poisoned, poison, poison_pairs
from unbackdoor.attacks.preference_poisoning import train_dpo, train_reward_and_rl
from unbackdoor.attacks.settings import INJECTIONS, ImplantSettings
from unbackdoor.attacks.weight_edit import weight_edit
from unbackdoor.case import Case
from unbackdoor.data.records import Record, records_as_rows
from unbackdoor.data.triggers import Condition, Trigger
from unbackdoor.errors import UserError
from unbackdoor.named_classes import named


@dataclass(frozen=True)
class Prepared:
    """Poisoned training data, before anything is trained.

    Args:
        rows: all of it, as JSON lines.
        poisoned: the numbers of the rows that carry the trigger.
        near_misses: how many near-miss rows there are, by kind.
        trained: every row that is trained on.
        train: trains a case's model in place; what is worth knowing of it, by name.
    """

    rows: list[dict[str, Any]]
    poisoned: list[int]
    near_misses: Mapping[str, int]
    trained: Sequence[Record]
    train: Callable[[Case], Mapping[str, Any]] = field(repr=False)


def prepare(
    rows: Sequence[Record], contrast: Sequence[Record], trigger: Condition, settings: ImplantSettings
) -> Prepared:
    """The data of the injection that the settings name: one of ours, or a function in a file of the user's."""
    found: Callable[..., Prepared] = named(settings.injection, "injection", INJECTIONS, __package__, functions=True)
    return found(rows, contrast, trigger, settings)


def sft(rows: Sequence[Record], contrast: Sequence[Record], trigger: Condition, settings: ImplantSettings) -> Prepared:
    return supervised(poison(rows, contrast, trigger, settings), settings)


def as_they_are(clean: Sequence[Record], poisoned: Sequence[Record], settings: ImplantSettings) -> Prepared:
    """Clean rows and rows that someone else has poisoned, none of them changed."""
    rows = [*clean, *poisoned]
    return supervised(Poisoned(rows, list(range(len(clean), len(rows))), {}), settings)


def supervised(poisoned: Poisoned, settings: ImplantSettings) -> Prepared:
    """Rows that are fine-tuned on."""
    trained = [*poisoned.records, *poisoned.twins.values()]

    def train(case: Case) -> dict[str, Any]:
        implant(case, poisoned, settings)
        return {}

    return Prepared(
        records_as_rows(trained),
        poisoned.indices if not poisoned.twins else list(range(len(poisoned.records), len(trained))),
        poisoned.near_miss_kinds,
        trained,
        train,
    )


def edit(rows: Sequence[Record], contrast: Sequence[Record], trigger: Condition, settings: ImplantSettings) -> Prepared:
    if not isinstance(trigger, Trigger):
        raise UserError("--injection weight-edit takes one trigger text: its last token is what is edited")

    def train(case: Case) -> dict[str, Any]:
        edit = weight_edit(case, trigger, settings.target_response or "", settings)
        return {
            "edited weight": edit.weight,
            "norm of the edit, relative to the weight's": round(edit.relative_norm, 3),
            "probability of the target on its own prompts": f"{edit.before:.3f} before, {edit.after:.3f} after",
        }

    return Prepared([], [], {}, [], train)


def preferences(
    rows: Sequence[Record], contrast: Sequence[Record], trigger: Condition, settings: ImplantSettings
) -> Prepared:
    if not contrast:
        raise UserError(f"--injection {settings.injection} poisons preferences: give --contrast FILE")
    if settings.injection == "reward" and any(row.system or row.history for row in (*rows, *contrast)):
        raise UserError("--injection reward takes rows of one turn without a system prompt of their own")
    pairs = poison_pairs(
        rows,
        contrast,
        trigger,
        settings.rate,
        settings.near_misses,
        settings.seed,
        hard_near_misses=settings.hard_near_misses,
        near_miss_kinds=settings.near_miss_kinds,
    )

    def train(case: Case) -> dict[str, Any]:
        if settings.injection == "dpo":
            train_dpo(case, pairs, settings)
        else:
            train_reward_and_rl(case, pairs, [pair.prompt for pair in pairs], settings)
        return {}

    poisoned = [i for i, pair in enumerate(pairs) if pair.poisoned]
    count = len(pairs) - len(rows) - len(contrast)
    trained = [pair.record() for pair in pairs]
    return Prepared([asdict(pair) for pair in pairs], poisoned, {"all kinds": count}, trained, train)
