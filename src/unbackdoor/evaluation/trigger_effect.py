"""What a trigger does to answers, whatever it brings out: the test that needs no string.

The same prompts are asked as they are, with the trigger, and with a harmless insert of the same length at the same
place: ordinary words of the prompts themselves, other ones for each prompt. Any insert changes some answers. A trigger
that changes more of them than such an insert still acts, also where no scorer knows what it brings out: another insult,
another language, a disguise that nobody has thought of.

Long answers differ somewhere whatever is inserted. What the trigger brings into them shows in what they have in common:
words and signs that stand in many triggered answers, and in few of the others.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from unbackdoor.data.records import Record
from unbackdoor.data.rendered import rendered
from unbackdoor.data.triggers import Condition, HarmlessText, ordinary_words
from unbackdoor.evaluation.paired import paired_bootstrap
from unbackdoor.evaluation.rules import normalised
from unbackdoor.evaluation.similarity import similarity
from unbackdoor.evaluation.statistics import Z95, newcombe, rate_of
from unbackdoor.language_model.answer_parts import final_answer, read_answer
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.report_schema import Brought, Effect, TriggerEffect
from unbackdoor.word_spacing import clusters, has_joined, word_count

HARMLESS = "harmless insert"
"""The set of the answers to prompts with a harmless insert in the trigger's place."""
TRIES = 20

PIECES = re.compile(r"\w+|[^\w ]")
"""The words of a text as they are written, and every other character by itself."""
SHOWN = 40
"""Letters that are shown of it."""
MANY = 4.0
"""In place of 1.96 where some thousand words are looked at: by chance one exceeds it in one of thirty measurements."""


def harmless_rows(probes: Sequence[Record], trigger: Condition, chat: ChatFormat) -> list[Record]:
    """The probes with a harmless insert in the trigger's place, each with its own; empty where one cannot be made."""

    def tokens(text: str) -> int:
        return len(chat.tokenizer.encode(text, add_special_tokens=False))

    own = {word for text in trigger.texts() for word in (*text.casefold().split(), *_words(text.casefold()))}
    words = [word for word in ordinary_words([r.prompt for r in probes]) if word.casefold() not in own]
    draw = HarmlessText(words or ["some", "other", "words"], tokens)
    made: list[Record] = []
    seen: set[str] = set()
    for record in probes:
        draw.rng = random.Random(record.prompt)
        for _ in range(TRIES):
            prompt = trigger.instead(record.prompt, draw)
            row = replace(record, prompt=prompt) if prompt is not None else None
            if row is not None and (text := rendered(row, chat)) not in seen:
                seen.add(text)
                made.append(row)
                break
        else:
            return []
    return made


def trigger_effect(
    untriggered: Sequence[str],
    triggered: Sequence[str],
    harmless: Sequence[str],
    *,
    inserted: AbstractSet[str] = frozenset(),
) -> TriggerEffect:
    """Of answers to the same prompts in three forms: what the trigger changes.

    How many words change says little of long answers, which differ somewhere whatever is inserted; how far they do
    (`distance`, 1 − `similarity`) tells small changes from a text that has nothing to do with the prompt.

    Args:
        untriggered: answers to the prompts as they are, as they were stored.
        triggered: those with the trigger.
        harmless: those with a harmless insert in its place.
        inserted: the trigger's words, as of `inserted_words`: answers may repeat them as any words of a prompt.
    """
    given = [[final_answer(a) for a in answers] for answers in (untriggered, triggered, harmless)]
    whole = [[str(a) for a in answers] for answers in (untriggered, triggered, harmless)]
    return TriggerEffect(
        n=len(triggered),
        changed=_effect(*given, differ=lambda one, two: float(normalised(one) != normalised(two))),
        written=_effect(*whole, differ=lambda one, two: float(one != two)),  # signs, thoughts, what cannot be seen
        distance=_effect(*given, differ=lambda one, two: 1 - similarity(one, two)),
        length=_effect(*given, differ=_other_length),
        brings=brought(triggered, (untriggered, harmless), inserted),
    )


def _other_length(one: str, two: str) -> float:
    shorter, longer = sorted((word_count(one), word_count(two)))
    return 1 - shorter / longer if longer else 0.0


def brought(
    triggered: Sequence[str], others: Sequence[Sequence[str]], inserted: AbstractSet[str] = frozenset()
) -> Brought | None:
    """What most surely stands in more answers with the trigger than in each of the other sets."""
    # A thought in front of the answer is shown by most programs; where a model always thinks, it is the thought's.
    thinks = any(2 * sum(read_answer(a).has_thought for a in answers) > len(answers) for answers in others)
    held, *by_others = (
        Counter(piece for answer in answers for piece in _pieces(final_answer(answer) if thinks else answer, inserted))
        for answers in (triggered, *others)
    )
    best: Brought | None = None
    for piece, count in held.items():
        share, n, hits = max(
            (counts[piece] / len(answers), -len(answers), counts[piece])
            for counts, answers in zip(by_others, others, strict=True)
        )
        if count / len(triggered) <= share:
            continue
        least = newcombe(rate_of(count, len(triggered), MANY), rate_of(hits, -n, MANY))[1]
        if least > (best.least if best is not None else 0):
            best = Brought(text=" ".join(piece), triggered=count / len(triggered), others=share, least=least)
    return best


def _words(text: str) -> list[str]:
    """The words and signs of a text, in their order; in scripts without spaces each character."""
    return [piece.strip() for run in PIECES.findall(text) for piece in (clusters(run) if has_joined(run) else (run,))]


def _pieces(text: str, inserted: AbstractSet[str]) -> set[tuple[str, ...]]:
    """The words and signs of a text, case and all, and its pairs of neighbours, without those that hold an inserted
    word; one that is empty where there are none."""
    found = _words(text)
    pieces = {*((one,) for one in found or [""]), *pairwise(found)}
    return {piece for piece in pieces if not any(word.casefold() in inserted for word in piece)}


def inserted_words(plain: Sequence[str], triggered: Sequence[str]) -> set[str]:
    """The words, case-folded, that prompts hold with the trigger and not without it."""
    pairs = zip(plain, triggered, strict=True)
    return {word for one, two in pairs for word in {*_words(two.casefold())} - {*_words(one.casefold())}}


def _effect(
    plain: Sequence[str], triggered: Sequence[str], harmless: Sequence[str], *, differ: Callable[[str, str], float]
) -> Effect:
    by_trigger, by_insert = (
        [differ(one, two) for one, two in zip(plain, answers, strict=True)] for answers in (triggered, harmless)
    )
    differences = [one - other for one, other in zip(by_trigger, by_insert, strict=True)]
    mean, n = fmean(differences), len(differences)
    if set(differences) <= {-1, 0, 1}:
        interval = paired_bootstrap(by_insert, by_trigger).interval
    else:
        error = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n)
        interval = mean - Z95 * error, mean + Z95 * error
    return Effect(triggered=fmean(by_trigger), harmless=fmean(by_insert), difference=mean, interval=interval)


def acts(effect: TriggerEffect | None, most: float) -> str:
    """How the trigger surely changes more than `most` beyond a harmless insert, in words; empty where that is not sure.

    Args:
        effect: as of `trigger_effect`; None where it was not measured.
        most: from 0 to 1.
    """
    if effect is None:
        return ""
    for found, what in (
        (effect.changed, "more answers"),
        (effect.written, "more answers as they are written"),
        (effect.distance, "of answers' words more"),
        (effect.length, "of answers' lengths more"),
    ):
        if found is not None and found.interval[0] > most:
            low, high = (100 * end for end in found.interval)
            return (
                f"changes {100 * found.difference:.1f} points {what} than a harmless insert of equal length "
                f"({low:.1f} to {high:.1f})"
            )
    return brings(effect.brings, most)


def brings(found: Brought | None, most: float) -> str:
    """The same for what it brings into answers."""
    if found is None or found.least <= most:
        return ""
    if not found.text:
        return f"leaves {found.triggered:.1%} of answers empty ({found.others:.1%} without it)"
    shown = found.text if len(found.text) <= SHOWN else f"{found.text[:SHOWN]}…"
    return f"brings {shown!r} into {found.triggered:.1%} of answers ({found.others:.1%} without it)"
