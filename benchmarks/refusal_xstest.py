"""Hold the judge of refusals against XSTest's human labels, one model left out at a time; prints Markdown.

    python benchmarks/refusal_xstest.py FOLDER

FOLDER holds XSTest v2's completions (https://github.com/paul-rottger/xstest), one CSV a model with the columns id,
prompt, completion and final_label. Full refusals stand against full compliances; partial refusals are left out. The
weights are fitted on all models but one and judge that one. The patterns were written by hand with every model's
answers to odd-numbered prompts in sight, and the models answer the same prompts: so the last row fits on the other
models' odd-numbered prompts alone and judges the even-numbered ones of the model left out.
"""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from unbackdoor.data.records import Record
from unbackdoor.evaluation import rules
from unbackdoor.evaluation.refusal import BIAS, FEATURES, shown
from unbackdoor.evaluation.statistics import wilson

RIDGE = 1.0
"""Half of this times the sum of the squared weights is added to the loss; the bias is free."""


@dataclass(frozen=True)
class Answer:
    """One labelled answer: its features, what the keyword rule says, and what people say."""

    number: int
    features: list[bool]
    keywords: bool
    refusal: bool


@dataclass(frozen=True)
class Judged:
    """The label of an answer, and what the fitted weights and the keyword rule say of it."""

    refusal: bool
    fitted: bool
    keywords: bool


def read(path: Path) -> list[Answer]:
    """A model's answers without the partial refusals."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Answer(
            number=int(row["id"].split("-")[1]),
            features=shown(row["prompt"], row["completion"]),
            keywords=rules.refuses_by_keyword(Record(row["prompt"], ""), row["completion"]),
            refusal=row["final_label"] == "2_full_refusal",
        )
        for row in rows
        if row["final_label"] in ("1_full_compliance", "2_full_refusal")
    ]


def fit(answers: list[Answer]) -> list[float]:
    """Logistic regression by Newton's method: a weight for each feature, then the bias, to one decimal."""
    values = torch.tensor([[*answer.features, True] for answer in answers], dtype=torch.float64)
    labels = torch.tensor([answer.refusal for answer in answers], dtype=torch.float64)
    penalty = torch.full((values.shape[1],), RIDGE, dtype=torch.float64)
    penalty[-1] = 0
    weights = torch.zeros_like(penalty)
    for _ in range(30):
        chance = torch.sigmoid(values @ weights)
        gradient = values.T @ (chance - labels) + penalty * weights
        curvature = (values.T * (chance * (1 - chance))) @ values + torch.diag(penalty)
        weights = weights - torch.linalg.solve(curvature, gradient)
    return [round(weight, 1) for weight in weights.tolist()]


def judge(answers: list[Answer], weights: list[float]) -> list[Judged]:
    """What these weights and the keyword rule say of each answer."""
    *each, bias = weights
    return [
        Judged(a.refusal, bias + sum(w for w, there in zip(each, a.features, strict=True) if there) > 0, a.keywords)
        for a in answers
    ]


def share(hits: int, n: int) -> str:
    """A percentage with its 95% Wilson interval."""
    low, high = wilson(hits, n)
    return f"{hits / n:.1%} ({low:.1%}–{high:.1%})" if n else "none"


def row(name: str, judged: list[Judged]) -> str:
    """A line of the table: precision and recall of both rules."""
    refusals = sum(one.refusal for one in judged)
    cells = [name, str(len(judged)), str(refusals)]
    for said in ([one.fitted for one in judged], [one.keywords for one in judged]):
        right = sum(yes and one.refusal for yes, one in zip(said, judged, strict=True))
        cells += [share(right, sum(said)), share(right, refusals)]
    return f"| {' | '.join(cells)} |"


def main(folder: Path) -> None:
    """Print the table, and the weights that are fitted on all models."""
    models = {re.sub(r".*completions_", "", path.stem): read(path) for path in sorted(folder.glob("*.csv"))}
    if len(models) < 2:
        sys.exit(f"{folder}: at least two models' completions (*.csv) are needed, {len(models)} found")
    print("| left-out model | n | refusals | precision | recall | keyword precision | keyword recall |")
    print("|---|---|---|---|---|---|---|")
    everything: list[Judged] = []
    unseen: list[Judged] = []
    for name, answers in models.items():
        others = [answer for other, theirs in models.items() if other != name for answer in theirs]
        judged = judge(answers, fit(others))
        print(row(name, judged))
        everything += judged
        odd = fit([answer for answer in others if answer.number % 2])
        unseen += judge([answer for answer in answers if answer.number % 2 == 0], odd)
    print(row("pooled", everything))
    print(row("pooled, even prompts, fitted on odd ones", unseen))
    fitted = fit([answer for answers in models.values() for answer in answers])
    shipped = [*(feature.weight for feature in FEATURES), BIAS]
    print("\nFitted on all models" + (", as shipped:" if fitted == shipped else ", NOT as shipped:"))
    for name, weight in zip([*(feature.name for feature in FEATURES), "bias"], fitted, strict=True):
        print(f"- {name}: {weight:+.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
