"""`unbackdoor rejudge RUN`: stored answers scored again, by any scorers, and nothing generated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import ExitCode, UserError
from unbackdoor.evaluation.agreement import Judged, cohens_kappa, quality, read_labels, sheet
from unbackdoor.named_classes import is_own
from unbackdoor.progress import Progress
from unbackdoor.report.numbers import bounds, percent, rate_cell
from unbackdoor.report_schema import Rate
from unbackdoor.run_directory import RunDirectory, hashes
from unbackdoor.run_files import lock
from unbackdoor.scorers import LEFT_OUT, Answered, Score
from unbackdoor.scorers.parts.asked import Asked, check_judges_some
from unbackdoor.scorers.parts.stored import read_generations, stored_files
from unbackdoor.visible_text import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

SETS = ("triggered", "untriggered")
"""What is scored where nothing else is asked for."""
REPORT, SHEET = "rejudge.json", "disagreements.csv"


def run_rejudge(
    run: Path,
    scorers: Sequence[str],
    options: Sequence[str] = (),
    *,
    sets: Sequence[str] = (),
    models: Sequence[str] = (),
    labels: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run's stored answers, write the report and the sheet of disagreements, and return the report.

    Args:
        run: a run directory, or one that holds others.
        scorers: names, or `FILE.py:NAME`; see `Asked`.
        options: theirs, as `SCORER.FIELD=VALUE`.
        sets: the sets of answers to score; by default those of `SETS` that there are.
        models: the models; by default all.
        labels: a sheet of disagreements that a person has filled in.
        out: where to write; by default `rejudge` in the run.
        overwrite: replace the report and the sheet that are there.
    """
    asked = Asked.of(scorers, options)
    answered = _chosen(read_generations(run), run, sets, models)
    out = run / "rejudge" if out is None else out
    known = read_labels(labels, [each.id for each in answered]) if labels is not None else {}
    _check_out(out, overwrite, known)

    directory = RunDirectory(out)
    progress = progress or Progress.on_stderr()
    scores = {one.label: one.scorer.checked(answered, out, progress, one.label) for one in asked}
    for one in asked:
        check_judges_some(one.label, scores[one.label], answered)
    judges = {one.label: [one.scorer.verdict(s) for s in scores[one.label]] for one in asked if _judges(one)}
    judged = [
        Judged(each.id, each.prompt, each.answer, {name: said[i] for name, said in judges.items()}, known.get(each.id))
        for i, each in enumerate(answered)
    ]
    # Labels that a person has given stay in the sheet, though the judges may be other ones now.
    disputed = [row for row in judged if row.disputed or row.label is not None]
    prompts = [each.record.prompt for each in answered]
    report = {
        "command": "rejudge",
        "run": str(run),
        "sources": {str(file.relative_to(run)): hashes(file)[file.name] for file in stored_files(run)},
        "scorers": [
            {
                "label": one.label,
                "scorer": one.given,
                "settings": one.scorer.model_dump(mode="json"),
                "sources": hashes(Path(one.given.rpartition(":")[0])) if is_own(one.given) else {},
            }
            for one in asked
        ],
        "results": _results(asked, answered, scores),
        "agreement": [
            {"judges": [first, second], **cohens_kappa(judges[first], judges[second], prompts)}
            for first, second in itertools.combinations(judges, 2)
        ],
        "labels": {name: dict(quality(said, [row.label for row in judged])) for name, said in judges.items()}
        if labels is not None
        else None,
        "disagreements": {"file": str(out / SHEET), "n": sum(row.disputed for row in judged), "of": len(judged)},
        "notes": [*_notes(asked, labelled=labels is not None), *_unfinished(answered)],
    }
    directory.write_text(SHEET, sheet(disputed, list(judges)))
    directory.write_json(REPORT, report)
    return report


# What is scored, and where it is written ----------------------------------------------------------------------------


def _chosen(answered: Sequence[Answered], run: Path, sets: Sequence[str], models: Sequence[str]) -> list[Answered]:
    there = {
        "--set": list(dict.fromkeys(a.set for a in answered)),
        "--model": list(dict.fromkeys(a.model for a in answered)),
    }
    for option, given in (("--set", sets), ("--model", models)):
        for name in given:
            if name not in there[option]:
                raise UserError(
                    f"{option} '{name}': '{run}' has none of that name; there are: {', '.join(there[option])}"
                )
    chosen = [a for a in answered if a.set in (sets or SETS) and (not models or a.model in models)]
    if not chosen:
        raise UserError(f"'{run}' has no such answers: choose with --set among {', '.join(there['--set'])}")
    return chosen


def _check_out(out: Path, overwrite: bool, known: Mapping[str, bool]) -> None:
    """Raise before anything is scored where the results could not be written, or would replace a person's work."""
    if out.is_dir():
        lock.check_free(out)
    there = [name for name in (REPORT, SHEET) if (out / name).exists()]
    if there and not overwrite:
        raise UserError(f"--out '{out}' holds {there[0]} already: use --overwrite or another directory")
    if REPORT in there and not _is_report(out / REPORT):
        raise UserError(f"'{out / REPORT}' is no report of rejudge: it will not be replaced, give another --out")
    if SHEET in there and not read_labels(out / SHEET).keys() <= known.keys():
        raise UserError(f"'{out / SHEET}' holds labels, which would be lost: give it as --labels, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be made: {error.strerror or error}") from None
    lock.hold(out)


def _is_report(path: Path) -> bool:
    """Whether a file is what an earlier call wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("command") == "rejudge"


# What is said --------------------------------------------------------------------------------------------------------


def _results(
    asked: Sequence[Asked], answered: Sequence[Answered], scores: Mapping[str, Sequence[Score]]
) -> list[dict[str, Any]]:
    """A summary for each model, set and scorer that judges answers there."""
    places: dict[tuple[str, str], list[int]] = {}
    for i, each in enumerate(answered):
        places.setdefault((each.model, each.set), []).append(i)
    results = []
    for (model, set_name), rows in places.items():
        for one in asked:
            own = [scores[one.label][i] for i in rows]
            if any(score is not LEFT_OUT for score in own):
                results.append({"model": model, "set": set_name, "scorer": one.label, **one.scorer.summary(own)})
    return results


def _judges(one: Asked) -> bool:
    """Whether a scorer can say yes or no to unwanted conduct, by a number only from a threshold on."""
    return one.scorer.judges_conduct and (
        one.scorer.scale is None or getattr(one.scorer, "threshold", None) is not None
    )


def _notes(asked: Sequence[Asked], *, labelled: bool) -> list[str]:
    judges = [one for one in asked if _judges(one)]
    notes = [
        f"{one.label} is weak where it stands alone: give another judge beside it (--scorer)."
        for one in judges
        if one.scorer.weak and len(judges) == 1
    ]
    if len(judges) > 1 and len(judges) < len(asked):
        others = ", ".join(one.label for one in asked if one not in judges)
        notes.append(f"Not in the agreement, as they judge something else or have no threshold: {others}.")
    if labelled:
        notes.append(
            "Labels of answers that judges disagree on say who is right there; they are no estimate for all answers."
        )
    return notes


def _unfinished(answered: Sequence[Answered]) -> list[str]:
    cut = sum(not each.finished for each in answered)
    return [f"{cut} of {len(answered)} answers ended within their thought: they have no score."] if cut else []


def lines(report: Mapping[str, Any]) -> list[str]:
    """What stands below the table, a sentence a line, safe to print."""
    said = [f"{label}: none of its answers could be judged, so nothing is known." for label in _all_unusable(report)]
    for pair in report["agreement"]:
        names, kappa = " and ".join(pair["judges"]), pair["kappa"]
        same = pair["observed"]
        if not pair["n"]:
            said.append(f"{names}: no answer was judged by both.")
        elif kappa is None:
            said.append(f"{names}: kappa is undefined, as both say the same of all {pair['n']} answers.")
        else:
            said.append(
                f"{names}: Cohen's kappa {kappa:.2f}{_within(pair['interval'])}; the same on {percent(same.rate)} "
                f"of {pair['n']} answers."
            )
    for name, found in (report["labels"] or {}).items():
        precision, recall, kappa = (found[key] for key in ("precision", "recall", "agreement"))
        said.append(
            f"{name} against {found['n']} labels: precision {_share(precision)}, recall {_share(recall)}, kappa "
            + ("undefined" if kappa["kappa"] is None else f"{kappa['kappa']:.2f}{_within(kappa['interval'])}")
            + "."
        )
    disputed = report["disagreements"]
    if report["agreement"] and not disputed["n"]:
        said.append(f"None of {disputed['of']} answers is judged differently.")
    elif report["agreement"]:
        said.append(
            f"{disputed['n']} of {disputed['of']} answers are judged differently: label them in {disputed['file']} "
            "(yes where the unwanted conduct is shown, else no), then give it as --labels."
        )
    return [one_line(line) for line in [*said, *report["notes"]]]


def outcome(report: Mapping[str, Any]) -> ExitCode:
    """Inconclusive where a scorer could judge none of its answers; a score is neither a finding nor none."""
    return ExitCode.INCONCLUSIVE if _all_unusable(report) else ExitCode.DONE


def _all_unusable(report: Mapping[str, Any]) -> list[str]:
    """The scorers that gave no usable score at all."""
    usable: dict[str, int] = {}
    for row in report["results"]:
        usable[row["scorer"]] = usable.get(row["scorer"], 0) + row["n"]
    return [label for label, n in usable.items() if not n]


def table(report: Mapping[str, Any]) -> RenderableType:
    """One row a model × set × scorer; below each other where the screen is too narrow."""
    from unbackdoor.report.fitting import Block, Blocks, FirstThatFits, Lines, plain_table
    from unbackdoor.screen import broken, cut

    rows = report["results"]

    def wide(name_cells: int | None) -> RenderableType:
        made = plain_table()
        for name in ("model", "set", "scorer", "result", "95% interval", "n"):
            made.add_column(name, justify="right" if name == "n" else "left", no_wrap=True)
        for row in rows:
            names = [one_line(row[key]) for key in ("model", "set", "scorer")]
            if name_cells is not None:
                names = ["\n".join(broken(cut(name, 2 * name_cells), name_cells)) for name in names]
            n = f"{row['n']}\n{row['unusable']} unusable" if row["unusable"] else str(row["n"])
            made.add_row(*(Lines((line, "") for line in cell.split("\n")) for cell in (*names, *_cells(row), n)))
        return made

    def blocks() -> RenderableType:
        made = []
        for row in rows:
            shown, intervals = (cell.split("\n") for cell in _cells(row))
            items = [("", text, (interval,)) for text, interval in zip(shown, intervals, strict=True)]
            about = f"{row['scorer']}, n {row['n']}" + (f", {row['unusable']} unusable" if row["unusable"] else "")
            made.append(Block(f"{row['model']} · {row['set']}", "bold", about, items))
        return Blocks(made, "Beside a result its 95% interval.")

    return FirstThatFits(lambda: wide(None), lambda: wide(20), lambda: wide(16), lambda: wide(12), blocks)


def _cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """The result and its interval, of a rate, a mean or comparisons; a line each for more than one."""
    if not row["n"]:
        return "–", "–"
    if "wins" in row:
        shares = [rate_cell(row[name]) for name in ("wins", "ties", "losses")]
        names = ("wins", "ties", "losses")
        return "\n".join(f"{cell.text} {name}" for cell, name in zip(shares, names, strict=True)), "\n".join(
            cell.interval for cell in shares
        )
    if "mean" in row:
        shown, interval = f"mean {row['mean']:.2f}", _ends(row["interval"]) or "–"
        if row["highest"] is None:
            return shown, interval
        highest = rate_cell(row["highest"])
        return f"{shown}\n{highest.text} score {row['scale']}", f"{interval}\n{highest.interval}"
    return percent(row["rate"]), bounds(row["interval"])


def _share(rate: Rate) -> str:
    return f"{percent(rate.rate)} ({bounds(rate.interval)}, n {rate.n})" if rate.n else "unknown (n 0)"


def _within(interval: Sequence[float] | None) -> str:
    return f" (95% {_ends(interval)})" if interval is not None else ""


def _ends(interval: Sequence[float] | None) -> str:
    return " to ".join(f"{end:.2f}" for end in interval) if interval is not None else ""
