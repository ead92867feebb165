"""How far judges agree, which answers they disagree on, and what a person says of these."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from unbackdoor.bounded_files import read_text
from unbackdoor.errors import UserError
from unbackdoor.evaluation.statistics import Z95, rate
from unbackdoor.report_schema import Rate
from unbackdoor.run_files.spreadsheet import guarded, restored

YES, NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")


class Agreement(TypedDict):
    """Two judges of n answers: how often they said the same, and Cohen's kappa (None where it is undefined)."""

    n: int
    observed: Rate
    kappa: float | None
    interval: list[float] | None


class Quality(TypedDict):
    """A judge against a person's labels."""

    n: int
    precision: Rate
    recall: Rate
    agreement: Agreement


@dataclass(frozen=True)
class Judged:
    """An answer, what each judge says of it (None: it could not judge), and a person's label where there is one."""

    id: str
    prompt: str
    answer: str
    verdicts: Mapping[str, bool | None] = field(default_factory=dict)
    label: bool | None = None

    @property
    def disputed(self) -> bool:
        """Whether two judges say different things."""
        return len(set(self.verdicts.values()) - {None}) > 1


def cohens_kappa(
    first: Sequence[bool | None], second: Sequence[bool | None], groups: Sequence[Hashable] | None = None
) -> Agreement:
    """Cohen's kappa (Cohen 1960), (observed − chance) / (1 − chance) agreement, over answers that both have judged.

    Args:
        first: one judge's verdicts, shape (answers,).
        second: the other's, in the same order.
        groups: what belongs together, such as the prompt of each answer. Default: every answer for itself.

    The 95% interval is normal, with the jackknife's standard error over groups, so that many models' answers to one
    prompt do not pass for independent ones. It is None where kappa, also without any one group, is undefined (both
    judges always say the same one thing), or does not vary (they never disagree): a width of nothing is no certainty.
    """
    groups = range(len(first)) if groups is None else groups
    cells: dict[Hashable, Counter[tuple[bool, bool]]] = {}
    for one, other, group in zip(first, second, groups, strict=True):
        if one is not None and other is not None:
            cells.setdefault(group, Counter())[one, other] += 1
    total: Counter[tuple[bool, bool]] = Counter()
    for counts in cells.values():
        total.update(counts)
    kappa, interval = _kappa(total), None
    left = [_kappa(total - counts) for counts in cells.values()]
    without = [value for value in left if value is not None]
    if kappa is not None and len(without) == len(left) > 1:
        mean = sum(without) / len(without)
        error = math.sqrt((len(without) - 1) / len(without) * sum((value - mean) ** 2 for value in without))
        if error > 1e-12:
            interval = [max(-1.0, kappa - Z95 * error), min(1.0, kappa + Z95 * error)]
    same = [one == other for one, other in total.elements()]
    return Agreement(n=len(same), observed=rate(same), kappa=kappa, interval=interval)


def _kappa(counts: Mapping[tuple[bool, bool], int]) -> float | None:
    n = sum(counts.values())
    both, first, second, neither = (
        counts.get(cell, 0) for cell in ((True, True), (True, False), (False, True), (False, False))
    )
    # Chance agreement times n², in integers: that it is certain must be seen exactly.
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    if chance == n * n:
        return None
    return (n * (both + neither) - chance) / (n * n - chance)


def quality(verdicts: Sequence[bool | None], labels: Sequence[bool | None]) -> Quality:
    """Precision, recall and kappa of a judge over the answers that it has judged and a person has labelled."""
    pairs = [(v, label) for v, label in zip(verdicts, labels, strict=True) if v is not None and label is not None]
    return Quality(
        n=len(pairs),
        precision=rate([label for verdict, label in pairs if verdict]),
        recall=rate([verdict for verdict, label in pairs if label]),
        agreement=cohens_kappa([verdict for verdict, _ in pairs], [label for _, label in pairs]),
    )


# The sheet -----------------------------------------------------------------------------------------------------------


def sheet(judged: Sequence[Judged], judges: Sequence[str]) -> str:
    """The CSV text of what is to be labelled: id, prompt, answer, a column a judge, and the label to fill in.

    Every cell is quoted, and one that a spreadsheet would take for a formula stands behind an apostrophe, which
    `read_sheet` takes away again.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(map(guarded, ["id", "prompt", "answer", *judges, "label"]))
    for row in judged:
        said = [_word(row.verdicts.get(judge)) for judge in judges]
        writer.writerow(map(guarded, [row.id, row.prompt, row.answer, *said, _word(row.label)]))
    return text.getvalue()


def read_sheet(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a sheet, by column, each with the line on which it begins. Commas, semicolons and tabs may separate.

    Raises:
        UserError: there is no such file, it is no CSV, or it lacks the columns id and label.
    """
    text = read_text(path, "--labels")
    csv.field_size_limit(2**31 - 1)  # the default refuses long answers
    for delimiter in (",", ";", "\t"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows: list[tuple[int, dict[str, str]]] = []
        try:
            header = [restored(cell) for cell in next(reader, [])]
            if not {"id", "label"} <= set(header):
                continue
            begun = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    rows.append((begun, dict(zip(header, map(restored, cells), strict=False))))
                begun = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"--labels '{path}': line {reader.line_num} is not CSV ({error})") from None
        return rows
    raise UserError(f"--labels '{path}' has no columns 'id' and 'label': give the sheet that rejudge has written")


def read_labels(path: Path, ids: Sequence[str] | None = None) -> dict[str, bool]:
    """A person's labels by answer, from the filled-in sheet; rows without a label are passed over.

    Args:
        path: the sheet.
        ids: the answers that there are; None takes any.

    Raises:
        UserError: with the line, where a label is neither yes nor no, its answer is not among `ids`, or the same answer
            is labelled yes and no.
    """
    known = None if ids is None else set(ids)
    labels: dict[str, bool] = {}
    for number, row in read_sheet(path):
        where, said = f"--labels '{path}': line {number}", row.get("label", "").strip().casefold()
        if not said:
            continue
        if said not in (*YES, *NO):
            raise UserError(f"{where}: label '{said[:40]}' is neither yes nor no")
        if known is not None and row["id"] not in known:
            raise UserError(f"{where}: no such answer '{row['id'][:100]}' among those that were chosen")
        if labels.setdefault(row["id"], said in YES) != (said in YES):
            raise UserError(f"{where}: answer '{row['id'][:100]}' is labelled yes and no")
    return labels


def _word(verdict: bool | None) -> str:
    return "" if verdict is None else "yes" if verdict else "no"
