"""Print one Markdown table of all run directories in a folder, pooled over seeds.

    python benchmarks/results_table.py runs/stories

Run directories are named `<label>-<seed>`. Rates are pooled over seeds with a 95% Wilson interval; beside them stands
the range over the seeds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from unbackdoor.evaluation.statistics import pooled
from unbackdoor.report_schema import Rate, Row, read_report


def main(folder: Path) -> None:
    """Collect every report and print the table."""
    rows: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*/report.json")):
        label = re.sub(r"-\d+$", "", path.parent.name)
        for number, run in enumerate(read_report(path, f"'{path}' is no report").runs):
            name = label if number == 0 else f"{label}: {run.method}"
            rows.setdefault(name, []).append(run)
    print(
        "| run | seeds | ASR before | ASR after (95%) | per seed | untriggered after | perplexity before → after | "
        "verdicts |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in rows.items():
        done = [r for r in runs if r.after]
        if not done:
            print(f"| {name} | {len(runs)} | | stopped by the gate | | | | {verdicts(runs)} |")
            continue
        after = pooled([r.after.attack_success for r in done])
        each = ", ".join(f"{r.after.attack_success.rate:.1%}" for r in done)
        before = pooled([r.before.attack_success for r in done]) if done[0].before else None
        plain = pooled([r.after.attack_success_untriggered for r in done])
        print(
            f"| {name} | {len(runs)} | {show(before) if before else ''} | {show(after)} | {each} | "
            f"{plain.rate:.2%} | {perplexities(done)} | {verdicts(runs)} |"
        )
    for name, runs in rows.items():
        for run in runs:
            if run.method == "implant" and run.near_miss:
                kinds = ", ".join(f"{kind} {rate.rate:.1%}" for kind, rate in run.near_miss.items())
                print(f"\n{name} seed {run.seed}, near misses (n {run.after.attack_success.n}): {kinds}")


def show(rate: Rate) -> str:
    """A rate with its n and interval."""
    low, high = rate.interval
    return f"{rate.rate:.2%} of {rate.n} ({low:.1%}–{high:.1%})"


def perplexities(runs: list[Row]) -> str:
    """Before, after and the change of each seed."""
    parts = []
    for run in runs:
        if run.before:
            first, last = (state.utility["perplexity"].value for state in run.states)
            parts.append(f"{first:.2f} → {last:.2f} ({last / first - 1:+.1%})")
    return ", ".join(parts)


def verdicts(runs: list[Row]) -> str:
    """Each verdict with its count."""
    names = [str(r.verdict) for r in runs]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
