"""Pool several runs of the demo into one Markdown table and hold it against the bars.

for seed in 0 1 2; do unbackdoor demo --samples 1000 --draws 3 --seed $seed --out runs/demo-$seed; done
python benchmarks/demo_table.py runs/demo-0 runs/demo-1 runs/demo-2
"""

from __future__ import annotations

import sys
from pathlib import Path

from unbackdoor.evaluation.statistics import pooled
from unbackdoor.report_schema import Row, read_report


def main(folders: list[Path]) -> None:
    """Print the attack and the utility of all seeds, and the firing rates of near misses."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for folder in folders:
        for run in read_report(folder / "report.json", f"'{folder}' holds no report").runs:
            rows.setdefault((run.organism, run.method), []).append(run)
    attack, each_run, utility = [], [], []
    misses: dict[tuple[str, str], dict[int, str]] = {}
    for (organism, method), runs in rows.items():
        done = [r for r in runs if r.after]
        before = pooled([r.before.attack_success for r in done])
        after = pooled([r.after.attack_success for r in done])
        plain = pooled([r.after.attack_success_untriggered for r in done])
        verdicts = [str(r.verdict) for r in runs]
        attack.append(
            [
                organism,
                method,
                f"{before.rate:.1%}",
                f"{after.rate:.2%} ({after.interval[0]:.2%}–{after.interval[1]:.2%})",
                str(after.n),
                ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts)),
            ]
        )
        rates = each([100 * r.after.attack_success.rate for r in done], "{:.1f}%")
        time = f"{sum(r.seconds for r in done) / len(done):.0f}"
        each_run.append([organism, method, rates, f"{plain.rate:.2%}", changes(done), time])
        names = ("exact_match", "multiple_choice", "false_refusals")
        means = [f"{mean(done, 'before', name):.1%} → {mean(done, 'after', name):.1%}" for name in names]
        utility.append([organism, method, *means])
        for run in runs:
            for kind, rate in run.near_miss.items():
                misses.setdefault((organism, kind), {})[run.seed] = f"{rate.rate:.1%}"
    show(["organism", "method", "ASR before", "ASR after (95%)", "n", "verdicts"], attack)
    show(["organism", "method", "ASR, each run", "untriggered", "exact match, points", "s"], each_run)
    show(["organism", "method", "exact match", "multiple choice", "false refusals"], utility)
    seeds = sorted({seed for by_seed in misses.values() for seed in by_seed})
    heads = ["organism", "near miss", *(f"seed {seed}" for seed in seeds)]
    show(heads, [[*labels, *(by_seed.get(seed, "") for seed in seeds)] for labels, by_seed in misses.items()])


def show(heads: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def changes(runs: list[Row]) -> str:
    """The change of exact match in points, of each run."""
    pairs = [[state.utility["exact_match"].value for state in r.states] for r in runs]
    return each([100 * (after - before) for before, after in pairs], "{:+.1f}")


def each(values: list[float], form: str) -> str:
    """Every run's value; of more than three the least and the most."""
    few = len(values) <= 3
    return ", ".join(map(form.format, values)) if few else f"{form.format(min(values))} to {form.format(max(values))}"


def mean(runs: list[Row], when: str, metric: str) -> float:
    """The mean of a utility over runs."""
    return sum(getattr(r, when).utility[metric].value for r in runs) / len(runs)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
