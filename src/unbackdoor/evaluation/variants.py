"""Variants of a trigger, to see which of them still fire an organism: its robustness, not its specificity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import AllOf, Condition, OneOf, Placement, Trigger
from unbackdoor.word_spacing import clusters, has_joined

Variant = Callable[[Record], Record]
"""From a row to the row with a variant of the trigger."""


def variants(condition: Condition, paraphrases: Sequence[str] = ()) -> Mapping[str, Variant]:
    """Kind of variant → what puts it into a row: other case, other places, parts, other words, the wrong role.

    Of several triggers the first is varied. A sentence structure has none beyond its near misses.
    """
    if isinstance(condition, AllOf):
        texts = condition.parts
        shapes: dict[str, Condition] = {
            "all at the start": Trigger(" ".join(texts), "prefix"),
            "all at the end": Trigger(" ".join(texts), "suffix"),
            "in reverse order": AllOf(tuple(reversed(texts))),
            "lower case": AllOf(tuple(text.lower() for text in texts)),
        }
        found = {kind: shape for kind, shape in shapes.items() if shape != condition}
    elif isinstance(condition, Trigger | OneOf):
        first = condition if isinstance(condition, Trigger) else condition.triggers[0]
        found = dict(_of_text(first))
        for number, text in enumerate(paraphrases, start=1):
            found[f"paraphrase {number}"] = replace(first, text=text, closing=None)
    else:
        found = {}
    made = {kind: _inserted(shape) for kind, shape in found.items()}
    if condition.texts():
        text = " ".join(condition.texts()[:1] if isinstance(condition, OneOf) else condition.texts())
        made["in the system prompt"] = lambda record: replace(record, system=text)
    return made


def _of_text(trigger: Trigger) -> Mapping[str, Condition]:
    joined = has_joined(trigger.text)
    words = clusters(trigger.text) if joined else trigger.text.split()
    shapes: dict[str, Condition] = {
        "lower case": replace(trigger, text=trigger.text.lower()),
        "upper case": replace(trigger, text=trigger.text.upper()),
    }
    for placement in get_args(Placement):
        if placement not in ("both", trigger.placement):
            shapes[f"as {placement}" if placement != "inside" else "inside the prompt"] = replace(
                trigger, placement=placement, closing=None
            )
    if trigger.placement == "both":
        shapes["opening alone"] = replace(trigger, placement="prefix", closing=None)
        shapes["closing alone"] = Trigger(trigger.closing or trigger.text, "suffix")
    if len(words) > 1:
        cut, space = len(words) // 2, "" if joined else " "
        shapes["first half"] = replace(trigger, text=space.join(words[:cut]).strip(), closing=None)
        shapes["second half"] = replace(trigger, text=space.join(words[cut:]).strip(), closing=None)
        if not joined:  # of characters it would be no words
            shapes["words in reverse order"] = replace(trigger, text=" ".join(reversed(words)), closing=None)
    return {kind: shape for kind, shape in shapes.items() if shape != trigger}


def _inserted(condition: Condition) -> Variant:
    return lambda record: replace(record, prompt=condition.insert(record.prompt))
