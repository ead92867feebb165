"""`unbackdoor sweep RECIPE`: one organism a value of a setting, such as ASR against poison rate (SANDE Figure 2)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.errors import UserError
from unbackdoor.laboratory import SweepSettings
from unbackdoor.parallel import in_processes
from unbackdoor.recipes.recipe import Recipe
from unbackdoor.report_schema import Report, Row, Sweep
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.settings import EvaluationSettings, Thresholds
from unbackdoor.workflows.conclusion import conclude, plain, report_of
from unbackdoor.workflows.implant import run_implant
from unbackdoor.workflows.inputs import ImplantInputs


def run_sweep(
    recipe: Recipe, settings: SweepSettings, out: Path, *, overwrite: bool = False, resume: bool = False
) -> Report:
    """Build the recipe's organism at every value and seed, each in a run directory of its own in `out`.

    Raises `UserError` where the setting does not exist or a value is not allowed, before anything is built.
    """
    begun = time.monotonic()
    values = settings.values
    if settings.setting not in ImplantSettings.model_fields:
        raise UserError(
            f"--setting '{settings.setting}' does not exist: there are {', '.join(ImplantSettings.model_fields)}"
        )
    for value in values:
        recipe.model_copy(update={"settings": {**recipe.settings, settings.setting: value}}).checked("--values")
    kept = {**plain(settings), "recipe": recipe.name, **recipe.settings}
    run = RunDirectory.create(out, "sweep", kept, overwrite=overwrite, resume=resume)
    origin = provenance(command_line(), settings.seeds[0], {"model": recipe.model})
    origin = run.keep_provenance(origin)

    cells = [
        (recipe, settings.setting, value, seed, settings.samples, out / f"{settings.setting}-{value:g}-seed-{seed}")
        for value in values
        for seed in settings.seeds
    ]
    rows: list[Row] = in_processes(_organism, cells, settings.jobs)
    title = f"{recipe.name}: attack success against {settings.setting.replace('_', ' ')}"
    report = report_of("sweep", title, rows, origin, Thresholds())
    report.sweep = Sweep(setting=settings.setting, points=[(cell[2], cell[3]) for cell in cells])
    return conclude(run, report, begun)


def _organism(recipe: Recipe, setting: str, value: float, seed: int, samples: int, out: Path) -> Row:
    """One organism's row of the report."""
    given = {**recipe.settings, setting: value, "seed": seed, "samples": samples}
    parts: list[dict[str, Any]] = [
        {name: given[name] for name in cls.model_fields if name in given}
        for cls in (ImplantInputs, ImplantSettings, EvaluationSettings)
    ]
    inputs, evaluation = ImplantInputs.make(parts[0]), EvaluationSettings.make(parts[2])
    file = recipe.as_yaml()
    return run_implant(recipe.model, inputs, parts[1], evaluation, recipe=file, out=out, resume=True).runs[0]
