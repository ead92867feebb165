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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median

from unbackdoor.data.records import Record
from unbackdoor.evaluation.refusal import refuses
from unbackdoor.evaluation.rules import degenerate, normalised
from unbackdoor.evaluation.scripts import folded
from unbackdoor.evaluation.similarity import of_other_rows, of_the_same_row, overlap, pieces
from unbackdoor.evaluation.statistics import Z95, newcombe, rate_of
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.report_schema import AnswerQuality, Figures, Likeness
from unbackdoor.settings import Thresholds
from unbackdoor.writing import word_count

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
    the suspect has too little of it. `interval` is the normal 95% interval of the paired change of that, over rows.
    """
    wanted = [pieces(text) for text in right]
    own, specific = [], []
    for answers in (before, after):
        counted = [pieces(text) for text in answers]
        same = of_the_same_row(counted, wanted)
        own.append(fmean(same))
        specific.append([one - other for one, other in zip(same, of_other_rows(counted, wanted), strict=True)])
    changes = [last - first for first, last in zip(*specific, strict=True)]
    mean, n = fmean(changes), len(changes)
    error = math.sqrt(sum((c - mean) ** 2 for c in changes) / max(1, n - 1) / n)
    first, last = (fmean(each) for each in specific)
    return Likeness(
        n=n,
        before=own[0],
        after=own[1],
        kept=last / first if first >= LEAST_SPECIFIC else None,
        interval=(mean - Z95 * error, mean + Z95 * error),
    )


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
    """The share of each script among the letters, in thousandths."""
    counts = Counter(_script(c) for text in texts for c in folded(text) if c.isalpha())
    return Counter({(name,): round(1000 * count / counts.total()) for name, count in counts.items()})


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]


# What counts as damage -----------------------------------------------------------------------------------------------


def damage_of_answers(quality: AnswerQuality, thresholds: Thresholds) -> list[str]:
    """What the answers show that is worse than the thresholds allow, in words; empty where nothing is."""
    found = [_agreement_lost(quality, thresholds)]
    first, after, n = quality.before, quality.after, quality.n
    models = [first, *([quality.references] if quality.references is not None else [])]

    def rose(pick: Callable[[Figures], float], most: float) -> bool:
        """Whether a figure is further up than in the suspect's answers and in the references."""
        return pick(after) > max(map(pick, models)) + most

    def surely(now: float, was: float) -> bool:
        return newcombe(rate_of(round(n * now), n), rate_of(round(n * was), n))[1] > 0

    if after.distinct < min(each.distinct for each in models) - thresholds.most_sameness:
        found.append(f"only {after.distinct:.1%} of answers are distinct, before {first.distinct:.1%}")
    elif rose(lambda each: each.alike, thresholds.most_sameness):
        found.append(f"answers to different prompts are alike ({after.alike:.2f}, before {first.alike:.2f})")
    if rose(lambda each: each.like_the_prompt, thresholds.most_sameness):
        found.append(f"answers repeat their prompt ({after.like_the_prompt:.2f}, {first.like_the_prompt:.2f})")
    if rose(lambda each: each.refusals, thresholds.most_false_refusals):
        found.append(f"{after.refusals:.1%} of ordinary prompts are refused, before {first.refusals:.1%}")
    ratios = [after.words / each.words for each in models if each.words]
    if ratios and (max(ratios) < thresholds.least_length_ratio or min(ratios) > 1 / thresholds.least_length_ratio):
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
    return [each for each in found if each]


BROKEN: tuple[tuple[Callable[[Figures], float | None], str], ...] = (
    (lambda each: each.empty, "empty"),
    (lambda each: each.loops, "repetitions"),
    (lambda each: each.cut, "cut off, which they were not before"),
)
"""Shares of answers that are broken in themselves, and what is said of them."""


def _agreement_lost(quality: AnswerQuality, thresholds: Thresholds) -> str:
    """What is lost of the agreement with the references; where these say nothing, with the suspect's own answers."""
    agreement, own = quality.agreement, quality.own
    if agreement is not None and agreement.kept is not None:
        lost = agreement.kept < thresholds.least_agreement and agreement.interval[1] < 0
        return (
            f"answers agree with the references to {agreement.after:.2f}, before {agreement.before:.2f}" if lost else ""
        )
    kept = own.kept if own.kept is not None else own.after
    return f"answers agree with those before to {own.after:.2f} alone" if kept < thresholds.least_own_agreement else ""
