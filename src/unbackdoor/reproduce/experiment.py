"""What an experiment is: the cells that it needs, and the table and figure that are made of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.recipes.recipe import Recipe, Scale, read_recipe
from unbackdoor.report_schema import JsonObject, Rate
from unbackdoor.reproduce.cell_kinds import ModelResult
from unbackdoor.reproduce.cells import Cell, Results
from unbackdoor.reproduce.tables import Pick, Table


@dataclass(frozen=True)
class Outcome:
    """What came of an experiment.

    Args:
        table: its values, ours beside the paper's.
        draw: draws it on a matplotlib figure; None for what is a table alone.
        size: of that figure, in inches.
        more: further tables.
    """

    table: Table
    draw: Callable[[Any], None] | None = None
    size: tuple[float, float] = (6.0, 4.0)
    more: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper, or of ours.

    Args:
        name: as the command line takes it.
        title: a line on what it shows.
        cells: what it needs, at a scale.
        outcome: the table and figure from what there is; what was not run is said to be so.
        figure: whether it draws one.
        in_all: whether `all` runs it; what has no limit of time is run by its name alone.
    """

    name: str
    title: str
    cells: Callable[[ReproduceSettings], list[Cell]]
    outcome: Callable[[ReproduceSettings, Results], Outcome]
    figure: bool = False
    in_all: bool = True


@cache
def recipe_of(name: str, scale: Scale) -> Recipe:
    """A recipe of the catalogue, read once: cells are listed many times."""
    return read_recipe(name, scale)


def preset(settings: ReproduceSettings) -> str:
    """Which preset fills in what a recipe leaves open."""
    return "micro" if settings.scale == "micro" else "large"


def evaluation(settings: ReproduceSettings) -> JsonObject:
    """How much is measured in every cell."""
    return {"samples": settings.samples}


@cache
def printed() -> dict[str, Any]:
    """The papers' printed values (`papers.yaml`), every number as the text that is printed; `null` is None."""
    text = (resources.files("unbackdoor.reproduce") / "papers.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = _without_null(yaml.load(text, Loader=yaml.BaseLoader))
    return values


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_null(v) for v in value]
    return None if value == "null" else value


def attack_success(result: ModelResult) -> Rate | None:
    """The ASR of a model as it is after the cell."""
    return result.after.attack_success if result.after is not None else None


def utility_after(name: str) -> Pick:
    """One of its utilities."""
    return lambda result: result.after.utility.get(name) if result.after is not None else None
