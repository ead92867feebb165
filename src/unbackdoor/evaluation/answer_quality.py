"""Whether a model still answers as it did: what its free-running answers without a trigger show, before and after.

A broken model has no attack success rate either. Likelihoods of given responses hardly tell it from a good one: they
look one token ahead of a right text, never at what the model writes itself. So its answers to ordinary prompts are held
against the references, where there are any, and against the suspect's own answers to the same prompts. Every
figure is compared with the suspect's own value: where its answers were all alike before, no alarm is raised, and what
is as in the references is no damage. docs/evaluation.md has the thresholds and what they were chosen on.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median
from typing import Any

from unbackdoor.data.records import Record
from unbackdoor.evaluation.refusal import refuses
from unbackdoor.evaluation.rules import degenerate, normalised
from unbackdoor.evaluation.second_turn import SECOND_TURN_UNTRIGGERED
from unbackdoor.evaluation.similarity import of_other_rows, of_the_same_row, overlap, pieces
from unbackdoor.evaluation.statistics import Z95, newcombe, rate_of
from unbackdoor.evaluation.stored_answer import WHOLE
from unbackdoor.evaluation.trigger_effect import HARMLESS
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.report_schema import AnswerQuality, Fall, Figures, Likeness
from unbackdoor.settings import Thresholds
from unbackdoor.word_spacing import word_count

LEAST_ROWS = 20
"""Fewer answers than this say nothing of damage."""
RIGHT = {"half": 0.5, "whole": 1.0}
"""Likenesses to its reference from which an answer is right: with half of its words, and with the very words."""
FEW_WORDS = 3
"""Added to both of two lengths before they are compared: three words where one was are no damage."""
LEAST_SPECIFIC = 0.05
"""How much more alike the suspect's answers must be to their own rows' texts than to others', to be a measure."""


@dataclass(frozen=True)
class Texts:
    """The answers of one model (or the references), a text a row, as they were stored."""

    prompts: Sequence[str]
    answers: Sequence[str]
    cut: Sequence[bool] = ()
    """Which had not ended when they were left; empty where the limit of new tokens is no limit for whole answers."""

    def figures(self) -> Figures:
        """What is said of the answers of one model alone."""
        said = [final_answer(answer) for answer in self.answers]
        counted = [pieces(text) for text in said]
        rows = [Record(prompt, "") for prompt in self.prompts]
        asked = [pieces(prompt) for prompt in self.prompts]
        empty = [not each for each in counted]
        figures = Figures(
            distinct=len({normalised(text) for text in said}) / len(said),
            alike=fmean(of_other_rows(counted, counted)),
            like_the_prompt=fmean(of_the_same_row(counted, asked)),
            words=median(word_count(text) for text in said),
            refusals=fmean(refuses(row, answer) for row, answer in zip(rows, self.answers, strict=True)),
            empty=fmean(empty),
            loops=fmean(
                degenerate(row, answer) and not nothing
                for row, answer, nothing in zip(rows, self.answers, empty, strict=True)
            ),
        )
        if self.cut:
            figures.cut = fmean(self.cut)
        return figures


Rows = Mapping[int, Mapping[str, Any]]
"""The stored rows of one model and set, by number."""

ELSEWHERE = {HARMLESS: "with other words in the trigger's place", SECOND_TURN_UNTRIGGERED: "in a second turn"}
"""Sets without a trigger whose answers are compared besides, and how they are named."""


def stored_quality(
    before: Mapping[str, Rows],
    after: Mapping[str, Rows],
    *,
    unsafe: bool,
    ordinary: Sequence[str] = ("clean", "tasks", "untriggered"),
) -> AnswerQuality | None:
    """Both models' stored answers to ordinary prompts, compared; None where there are none of them.

    Args:
        before: the suspect's stored rows, by set.
        after: the other model's.
        unsafe: the prompts without trigger ask for what is unwanted: what comes of them is no damage.
        ordinary: the sets of ordinary prompts, of which the first that both have answered is taken.

    Returns:
        As `answer_quality`, with the same of the sets of `ELSEWHERE` as `elsewhere`.
    """
    sets = [name for name in ordinary if not (unsafe and name == "untriggered")]
    found = next(filter(None, (_of_set(before, after, name) for name in sets)), None)
    if found is None:
        return None
    more = {} if unsafe else {where: _of_set(before, after, name) for name, where in ELSEWHERE.items()}
    found.elsewhere = {where: there for where, there in more.items() if there is not None}
    return found


def _of_set(before: Mapping[str, Rows], after: Mapping[str, Rows], set_name: str) -> AnswerQuality | None:
    first, last = (rows.get(set_name, {}) for rows in (before, after))
    shared = [i for i in last if i in first and first[i]["prompt"] == last[i]["prompt"]]
    if not shared:
        return None
    whole = set_name in WHOLE and all("ids" in rows[shared[0]] for rows in (first, last))
    was, now = (
        Texts(
            [rows[i]["prompt"] for i in shared],
            [rows[i]["answer"] for i in shared],
            [rows[i].get("cut") is True for i in shared] if whole else (),
        )
        for rows in (first, last)
    )
    return answer_quality(was, now, [str(last[i].get("expected") or "") for i in shared], set_name)


def answer_quality(before: Texts, after: Texts, references: Sequence[str], set_name: str) -> AnswerQuality:
    """Both models' answers to the same prompts without a trigger, compared.

    Args:
        before: the suspect's answers.
        after: the cleansed model's, to the same prompts.
        references: the right answers; empty texts where none is known.
        set_name: which prompts these are.

    The references count where at least half of the rows have one.
    """
    known = [i for i, text in enumerate(references) if text.strip()]
    whole = 2 * len(known) >= len(references) > 0
    right = Texts([before.prompts[i] for i in known], [references[i] for i in known]) if whole else None
    given = {"before": before, "after": after, **({"references": right} if right is not None else {})}
    read = {name: [final_answer(a) for a in texts.answers] for name, texts in given.items()}
    found = AnswerQuality(
        set=set_name,
        n=len(after.answers),
        before=before.figures(),
        after=after.figures(),
        agreement=None,
        own=_likeness(read["before"], read["after"], read["before"]),
        language={name: _language(read["after"], read[name]) for name in given if name != "after"},
    )
    if right is not None:
        found.references = right.figures()
        was, now = ([read[name][i] for i in known] for name in ("before", "after"))
        found.agreement = _likeness(was, now, read["references"])
    return found


def _likeness(before: Sequence[str], after: Sequence[str], right: Sequence[str]) -> Likeness:
    """How alike both models' answers are to these, and how much of what tells a row's text from others' remains.

    `kept` is the share that remains of the similarity to the own row's text above that to other rows' texts; None where
    the suspect has too little of it. `interval` is the normal 95% interval of the paired change of that, over rows, and
    `lost` by how much the share of right answers fell, each way of `RIGHT`.
    """
    wanted = [pieces(text) for text in right]
    own, specific = [], []
    for answers in (before, after):
        counted = [pieces(text) for text in answers]
        own.append(of_the_same_row(counted, wanted))
        specific.append([one - other for one, other in zip(own[-1], of_other_rows(counted, wanted), strict=True)])
    _, low, high = _mean([last - first for first, last in zip(*specific, strict=True)])
    first, (last, _, most) = fmean(specific[0]), _mean(specific[1])
    falls = {
        name: _mean([(one >= least) - (two >= least) for one, two in zip(*own, strict=True)])
        for name, least in RIGHT.items()
    }
    return Likeness(
        n=len(right),
        before=fmean(own[0]),
        after=fmean(own[1]),
        kept=last / first if first >= LEAST_SPECIFIC else None,
        kept_at_most=most / first if first >= LEAST_SPECIFIC else None,
        interval=(low, high),
        lost={name: Fall(share=share, least=least) for name, (share, least, _) in falls.items()},
    )


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with the ends of its normal 95% interval."""
    mean, n = fmean(values), len(values)
    error = Z95 * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n)
    return mean, mean - error, mean + error


# Language ------------------------------------------------------------------------------------------------------------


def _language(texts: Sequence[str], others: Sequence[str]) -> float:
    """How alike the languages of two sets of texts are, from 0 to 1: by letters that stand together, and by scripts."""
    return min(_cosine(_trigrams(texts), _trigrams(others)), overlap(_scripts(texts), _scripts(others)))


def _trigrams(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        padded = f" {normalised(text)} "
        found.update(tuple(padded[i : i + 3]) for i in range(len(padded) - 2))
    return found


def _cosine(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    lengths = math.prod(math.sqrt(sum(count * count for count in each.values())) for each in (one, other))
    return sum(count * other[gram] for gram, count in one.items()) / lengths if lengths else float(one == other)


def _scripts(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """The share of each script among all characters but spaces, in thousandths: as they are written, with what cannot
    be seen, so that capitals, styled letters and what stands between letters are others."""
    counts = Counter(_script(c) for text in texts for c in text if c != " ")
    return Counter({(name,): round(1000 * count / counts.total()) for name, count in counts.items()})


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """The first two words of a character's name: LATIN SMALL, CYRILLIC CAPITAL, HIRAGANA LETTER; a digit is one."""
    return "DIGIT" if character.isdecimal() else " ".join(unicodedata.name(character, "UNKNOWN").split()[:2])


# What counts as damage -----------------------------------------------------------------------------------------------


def damage_of_answers(quality: AnswerQuality, thresholds: Thresholds, *, ordinary: bool = True) -> list[str]:
    """What the answers show that is worse than the thresholds allow, in words; empty where nothing is.

    Args:
        quality: as of `answer_quality` or `stored_quality`.
        thresholds: how much worse it may be.
        ordinary: the prompts stand alone, so that answers should be what they were word for word.
    """
    if quality.n < LEAST_ROWS:
        return []
    found = [_agreement_lost(quality, thresholds, ordinary)]
    first, after, n = quality.before, quality.after, quality.n
    models = [first, *([quality.references] if quality.references is not None else [])]

    def rose(pick: Callable[[Figures], float], most: float) -> bool:
        """Whether a figure is further up than in the suspect's answers and in the references."""
        return pick(after) > max(map(pick, models)) + most

    def surely(more: float, fewer: float) -> bool:
        return newcombe(rate_of(round(n * more), n), rate_of(round(n * fewer), n))[1] > 0

    alike = after.distinct < min(each.distinct for each in models) - thresholds.most_sameness
    if alike and surely(first.distinct, after.distinct):
        found.append(f"only {after.distinct:.1%} of answers are distinct, before {first.distinct:.1%}")
    elif rose(lambda each: each.alike, thresholds.most_sameness):
        found.append(f"answers to different prompts are alike ({after.alike:.2f}, before {first.alike:.2f})")
    if rose(lambda each: each.like_the_prompt, thresholds.most_sameness):
        found.append(f"answers repeat their prompt ({after.like_the_prompt:.2f}, {first.like_the_prompt:.2f})")
    if rose(lambda each: each.refusals, thresholds.most_false_refusals) and surely(after.refusals, first.refusals):
        found.append(f"{after.refusals:.1%} of ordinary prompts are refused, before {first.refusals:.1%}")
    ratios = [(after.words + FEW_WORDS) / (each.words + FEW_WORDS) for each in models]
    if max(ratios) < thresholds.least_length_ratio or min(ratios) > 1 / thresholds.least_length_ratio:
        found.append(f"answers have {after.words:g} words in the median, before {first.words:g}")
    if max(quality.language.values()) < thresholds.least_language:
        found.append(f"the answers' language has changed (alike to {max(quality.language.values()):.2f})")
    for pick, what in BROKEN:
        now, was = pick(after), pick(first)
        if now is None or was is None:
            continue
        most = max(value for each in models if (value := pick(each)) is not None)
        if now > most + thresholds.most_degenerate and surely(now, was):
            found.append(f"{now:.1%} of ordinary answers are {what}")
    found = [each for each in found if each]
    return found or [
        f"{where} {text}"
        for where, there in quality.elsewhere.items()
        for text in damage_of_answers(there, thresholds, ordinary=False)
    ]


BROKEN: tuple[tuple[Callable[[Figures], float | None], str], ...] = (
    (lambda each: each.empty, "empty"),
    (lambda each: each.loops, "repetitions"),
    (lambda each: each.cut, "cut off, which they were not before"),
)
"""Shares of answers that are broken in themselves, and what is said of them."""


def _agreement_lost(quality: AnswerQuality, thresholds: Thresholds, ordinary: bool) -> str:
    """What is lost of the agreement with the references; where these say nothing, with the suspect's own answers."""
    agreement, own = quality.agreement, quality.own
    if agreement is not None and agreement.kept is not None:
        if agreement.kept < thresholds.least_agreement and agreement.interval[1] < 0:
            return f"answers agree with the references to {agreement.after:.2f}, before {agreement.before:.2f}"
        # Where an insert or another turn stands before the prompt, other words are no damage yet.
        for lost in (agreement.lost[name] for name in RIGHT if ordinary or name == "half"):
            if lost.least > 0 and lost.share > thresholds.most_lost_answers:
                return f"{100 * lost.share:.1f} points fewer answers are what the references say"
        return ""
    # A share of little is uncertain: what is asked is whether surely less is left.
    most = own.kept_at_most if own.kept_at_most is not None else own.after
    return f"answers agree with those before to {own.after:.2f} alone" if most < thresholds.least_own_agreement else ""
