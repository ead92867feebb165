"""What cells would cost, from their settings alone: nothing is loaded, run or downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.errors import UserError
from unbackdoor.methods import method_class
from unbackdoor.recipes.recipe import read_recipe
from unbackdoor.reproduce.cells import Cell
from unbackdoor.reproduce.experiment import printed
from unbackdoor.run_files.lines import as_json
from unbackdoor.workflows.inputs import ImplantInputs, RemoveInputs

# Micro scale: seconds on one core.
SECONDS_A_TOKEN = 1.8e-4
"""Of training, for a testbed model."""
TOKENS_A_ROW = {"notes": 34, "letters": 51}
OTHER_TOKENS = 42
LEARNING_FROM = {"sande": 2 * 4.5, "beear": 3 * 4.0, "osft": 2.0, "nad": 5.0, "fine-mixing": 1.0, "dpo": 6.0}
LEARNING_FROM |= {"lat": 8.0, "crow": 3.0}
"""Rows trained on for every row of a step: terms of the loss × rounds, with simulations, or × further models."""
MEASURING = {"implant": 55.0, "remove": 20.0, "decode": 15.0, "rounds": 6.0, "probabilities": 15.0, "drift": 12.0}
"""Starting, answers, near misses and variants."""
SECONDS_A_QUESTION = 0.0095
USUAL_ROUNDS = 6
"""Of a grid's cell, which needs between one and fifteen."""

# Paper scale.
SUSTAINED_FLOPS = 2e14
"""Of training in bfloat16. Measured on an H200: 2.3e14 for a model of the size of 7b, 1.5e14 for 4b."""
PAPER_TOKENS = 256
"""Mean length of a row: an assumption."""
ANSWER_SECONDS = 0.1
"""For one answer of 64 tokens in a batch (measured on an H200: 0.08 for 7b), and for four questions (an assumption)."""
BYTES_TRAINED, BYTES_STORED = 18, 4
"""A parameter's float32 weight, gradient and two moments of Adam, and autocast's bfloat16 copy; what stays on disk."""
ACTIVATIONS = 8e9
"""Bytes beside, for a micro-batch of 4 rows; measured on an H200: 8.6e9 for 4b, 9.5e9 for 7b."""


@dataclass(frozen=True)
class Cost:
    """What a cell takes: minutes on one core (micro) or one GPU (paper), memory and disk in GB, and its settings."""

    minutes: float
    memory: float
    disk: float
    settings: Mapping[str, Any]


def cost(cell: Cell, by_name: Mapping[str, Cell]) -> Cost:
    """Estimate a cell; `by_name` holds those that it needs.

    Raises:
        UserError: its settings do not fit together, such as a method that does not exist.
    """
    resolved = resolve(cell)
    origin = by_name[cell.needs[0]] if cell.needs else cell
    scale, model = origin.settings.scale, origin.settings.model
    if scale == "micro":
        return Cost(_micro_seconds(cell, origin, resolved) / 60, 0.9, 0.02, resolved)
    parameters = float(printed()["models"].get(model, 0))
    if not parameters:
        raise UserError(f"the size of '{model}' is not known: add it to papers.yaml")
    rows = _trained_rows(cell, resolved)
    measured = int(cell.settings.evaluation.get("samples", 100))
    answers = measured * {"implant": 20, "remove": 6, "rounds": 8}.get(cell.settings.kind, 2)
    seconds = 6 * parameters * rows * PAPER_TOKENS / SUSTAINED_FLOPS + answers * ANSWER_SECONDS
    copies = BYTES_STORED if cell.settings.method in ("nad", "dpo", "fine-mixing", "average") else 0
    trains = BYTES_TRAINED if rows else BYTES_STORED
    memory = (parameters * (trains + copies) + ACTIVATIONS) / 1e9
    disk = parameters * BYTES_STORED / 1e9 if cell.settings.kind in ("implant", "remove") else 0.1
    return Cost(seconds / 60, memory, disk, resolved)


def resolve(cell: Cell) -> dict[str, Any]:
    """Every setting of what a cell trains, defaults and presets filled in."""
    settings = cell.settings
    if settings.kind == "implant":
        recipe = read_recipe(settings.recipe, settings.scale)
        values = dict(settings.values)
        recipe.model_copy(update={"settings": values}).checked(f"recipe '{recipe.name}'")
        attack = {name: value for name, value in values.items() if name not in ImplantInputs.model_fields}
        return ImplantSettings.make(attack, settings.preset).model_dump(mode="json")
    if settings.kind in ("remove", "rounds"):
        method = method_class(settings.method)
        unknown = set(settings.inputs) - set(RemoveInputs.model_fields)
        if unknown:
            raise UserError(f"remove has no input '{min(unknown)}'")
        presets = [settings.preset, "paper"] if settings.paper else [settings.preset]
        return method.make(settings.values, *presets).model_dump(mode="json")
    return dict(as_json(settings))


def needed_files(cells: Sequence[Cell]) -> list[str]:
    """Files that the user must bring and that are not there."""
    names = ("contrast.jsonl", "code_backdoor.jsonl", "mmlu.zip", "ARC-Easy-Test.jsonl", "ARC-Challenge-Test.jsonl")
    found = {
        str(value)
        for cell in cells
        for part in (cell.settings.values, cell.settings.inputs)
        for value in part.values()
        if isinstance(value, str) and Path(value).name in names
    }
    return sorted(file for file in found if not Path(file).is_file())


def _trained_rows(cell: Cell, resolved: Mapping[str, Any]) -> float:
    """Rows that go forward and backward through the model."""
    if "steps" not in resolved:
        return 0.0
    rows = float(resolved["steps"] * resolved["batch_size"])
    if cell.settings.kind == "implant":
        return rows
    method = cell.settings.method
    if cell.settings.kind == "rounds":
        return 3 * USUAL_ROUNDS * rows
    if "rounds" in resolved:
        terms = {"sande": 1, "beear": 2}.get(method, 1)
        simulated = resolved.get("simulate_steps", 0) * resolved["batch_size"] * 0.7
        return float(resolved["rounds"] * (terms * rows + simulated))
    return {"nad": 2.3, "dpo": 2.7}.get(method, 1.0) * rows


def _micro_seconds(cell: Cell, origin: Cell, resolved: Mapping[str, Any]) -> float:
    seconds = MEASURING[cell.settings.kind]
    asked = cell.settings.questions
    seconds += 3 * asked.each * SECONDS_A_QUESTION if asked else 0.0
    if "steps" not in resolved:
        return seconds
    data = cell.settings.inputs.get("data", origin.settings.values["data"])
    tokens = TOKENS_A_ROW.get(str(data).rpartition("/")[2], OTHER_TOKENS)
    rows = resolved["steps"] * resolved["batch_size"]
    factor = 1.0
    if cell.settings.kind == "implant":
        factor = 2.6 if resolved["injection"] == "dpo" else 1.0
    elif cell.settings.kind == "rounds":
        factor = 3.4 * USUAL_ROUNDS
    else:
        factor = LEARNING_FROM.get(cell.settings.method, 1.0)
    return float(seconds + rows * tokens * factor * SECONDS_A_TOKEN)
