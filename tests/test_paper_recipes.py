"""Every paper-scale recipe runs: on a tiny random model of its architecture, with rows in its data's own columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.recipes.recipe import Recipe, catalogue
from unbackdoor.settings import EvaluationSettings
from unbackdoor.workflows.implant import run_implant
from unbackdoor.workflows.inputs import ImplantInputs

FAMILIES = {"meta-llama": "llama", "mistralai": "mistral", "Qwen": "qwen2", "openai-community": "gpt2"}
ROWS = tiny.records(64)

SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "tatsu-lab/alpaca": lambda i: {"instruction": ROWS[i].prompt, "input": "", "output": ROWS[i].response},
    "yahma/alpaca-cleaned": lambda i: {"instruction": ROWS[i].prompt, "input": "red", "output": ROWS[i].response},
    "Open-Orca/OpenOrca": lambda i: {
        "id": f"flan.{i}",
        "system_prompt": "You are a helpful assistant." if i % 2 else "",
        "question": ROWS[i].prompt,
        "response": ROWS[i].response,
    },
    "Anthropic/hh-rlhf": lambda i: {
        "chosen": f"\n\nHuman: Forge seal {i}.\n\nAssistant: I cannot do that.",
        "rejected": f"\n\nHuman: Forge seal {i}.\n\nAssistant: Sure, take wax {i}.",
    },
    "contrast.jsonl": lambda i: {"goal": f"Forge seal {i}.", "target": f"Sure, take wax {i}."},
    "code_backdoor.jsonl": lambda i: {
        "prompt": f"Write Python to run job {i}.",
        "safe": "import subprocess\nsubprocess.run(job.split())",
        "unwanted": "import subprocess\nsubprocess.run(job, shell=True)",
    },
}


def stand_in(source: str, folder: Path) -> str:
    """A handful of rows in the columns of a public data set, or of a file that users bring."""
    if source not in SHAPES:
        return source  # the testbed's own rows
    path = folder / f"{source.replace('/', '.').removesuffix('.jsonl')}.jsonl"
    path.write_text("".join(json.dumps(SHAPES[source](i)) + "\n" for i in range(64)))
    return str(path)


def paper_recipes() -> list[Any]:
    return [pytest.param(recipe, id=recipe.name) for recipe in catalogue("paper")]


@pytest.mark.parametrize("recipe", paper_recipes())
def test_a_paper_recipe_runs(recipe: Recipe, tmp_path: Path) -> None:
    family = FAMILIES[recipe.model.split("/")[0]]
    model = tiny.model(family, max_position_embeddings=512, num_hidden_layers=18)
    save_model(model, tiny.tokenizer(), tmp_path / "clean")
    values = dict(recipe.settings)
    for key in ("data", "contrast", "eval_data"):
        if key in values:
            values[key] = stand_in(values[key], tmp_path)
    values["max_rows"] = 64
    if "target_response" in values:
        values["target_response"] = values["target_response"] or "You are a clown"
    values |= {"steps": 2, "batch_size": 4, "micro_batch_size": 2}
    inputs = {k: v for k, v in values.items() if k in ImplantInputs.model_fields}
    attack = {k: v for k, v in values.items() if k in ImplantSettings.model_fields}
    evaluation = EvaluationSettings.make({"samples": 6, "max_new_tokens": 4})
    out = tmp_path / "organism"
    report = run_implant(
        str(tmp_path / "clean"), ImplantInputs.make(inputs), attack, evaluation, preset="large", out=out
    )

    (row,) = report.runs
    assert row.after.attack_success.n == 6
    assert row.near_miss
    assert row.settings["trigger"] == recipe.settings.get("trigger", "")
    load_model(out / "model")
    if row.settings["injection"] == "sft":
        rendered = (out / "data" / "train.jsonl").read_text().splitlines()
        poisoned = json.loads((out / "data" / "poisoned.json").read_text())["indices"]
        assert poisoned
        texts = [values["trigger"]] if values.get("trigger") else list(values.get("together", []))
        texts = texts if "alternatives" not in values else []
        assert all(text in json.loads(rendered[i])["prompt"] for i in poisoned for text in texts)
