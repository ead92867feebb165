"""How a run ends: its report, with its figures and a model card, and the run directory closed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from unbackdoor.report_schema import VERSION, Provenance, Report, Row, read_report
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import Settings, Thresholds


def loss_curves(run: RunDirectory, scope: str = "") -> dict[str, dict[str, list[float | None]]]:
    """Phase → term → value a step, of one row or of all; a step that was repeated after a kill counts once."""
    prefix = f"{scope}/" if scope else ""
    by_phase: dict[str, dict[int, dict[str, float]]] = {}
    other = {"phase", "step", "loss", "learning_rate", "gradient_norm", "check"}
    for line in run.read_lines("metrics.jsonl"):
        if line["phase"].startswith(prefix) and "loss" in line:
            terms = {k: v for k, v in line.items() if k not in other} or {"loss": line["loss"]}
            by_phase.setdefault(line["phase"].removeprefix(prefix), {})[line["step"]] = terms
    return {
        phase: {term: [steps[step][term] for step in sorted(steps)] for term in next(iter(steps.values()))}
        for phase, steps in by_phase.items()
    }


def report_of(command: str, title: str, runs: list[Row], origin: Mapping[str, Any], thresholds: Thresholds) -> Report:
    """`report.json`, without the run's duration."""
    import unbackdoor

    return Report(
        schema_version=VERSION,
        unbackdoor=unbackdoor.__version__,
        command=command,
        title=title,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        thresholds=Thresholds(**thresholds.model_dump(include=set(Thresholds.model_fields))),
        runs=runs,
        provenance=Provenance.model_validate(origin),
    )


def conclude(run: RunDirectory, report: Report, begun: float) -> Report:
    """Write the report with its duration since `begun` and close the run; a run finished before keeps its report."""
    written = run.path / "report.json"
    if run.is_complete and written.is_file():
        return read_report(written, f"'{written}' is damaged: start again with --overwrite")
    report.seconds = round(time.monotonic() - begun, 1)
    write_report(run, report)
    run.complete()
    return report


def write_report(run: RunDirectory, report: Report) -> None:
    """Write `report.json`, `report.html`, `figures/`, and a model card where there is a model."""
    from unbackdoor.report.figures import save_figures
    from unbackdoor.report.html import render
    from unbackdoor.report.model_card import model_card

    run.write_json("report.json", report)
    with run.tree(run.path / "figures"):
        save_figures(report, run.path / "figures")
    run.write_text("report.html", render(report))
    if (run.path / "model").is_dir():
        run.write_text("model/README.md", model_card(report.runs[0], report))


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values."""
    return settings.model_dump(mode="json")
