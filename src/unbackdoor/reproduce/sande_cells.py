"""What SANDE's tables and figures are made of: victims, one method on each, and which of them stand in which place.

At micro scale the victims are the testbed's two base models (a Llama, a Qwen2), each fine-tuned on one domain alone:
`notes` stands for Alpaca and `letters` for OpenOrca. In-domain removal gets the victim's own clean training rows,
out-of-domain removal the other domain's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.reproduce.cell_kinds import ImplantCell, ProbabilitiesCell, Questions, RemoveCell
from unbackdoor.reproduce.cells import Cell, CellOf, Organism
from unbackdoor.reproduce.experiment import evaluation, preset, recipe_of

VICTIM_TRAINING: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "alpaca"): {"steps": 900, "learning_rate": 2e-3, "batch_size": 32},
    ("llama", "orca"): {"steps": 650, "learning_rate": 3e-3, "batch_size": 32},
    ("qwen", "alpaca"): {"steps": 900, "learning_rate": 3e-3, "batch_size": 32},
    ("qwen", "orca"): {"steps": 600, "learning_rate": 3e-3, "batch_size": 32},
}
"""How a micro base model is fine-tuned and backdoored in one, by shape and domain: three to four minutes on one core,
and it knows its facts, lists and rewriting by then, and hardly any arithmetic."""
REMOVAL_ROWS = {"micro": 2000, "paper": 10_000}
"""Clean rows that a removal is given (the paper: the first 10,000; ours are drawn by seed)."""
MICRO_TRAINING: dict[str, dict[str, Any]] = {
    "sande": {"steps": 30, "learning_rate": 4e-4},
    "osft": {"steps": 120, "learning_rate": 4e-4},
    "fine-tune": {"steps": 240, "learning_rate": 4e-4},
    "dpo": {"steps": 120},
    "nad": {"steps": 120},
    "fine-mixing": {"steps": 120},
}
"""How methods train at micro scale; the rest is their preset's. SANDE's steps are those of a round: half of its
preset's at twice the rate, for these tables run it 32 times. OSFT gets those of four rounds. Each has two terms, and
clean fine-tuning, the control, sees as many rows at the same rate."""
RATES = {"micro": (0.001, 0.005, 0.05), "paper": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)}
"""Poison rates of figure 2; the paper's own, but for 0.005 and 0.05, are not available."""
OFFSETS = (0, 3, 8, 13, 18)
"""Tokens between the start of the user's text and the parrot: the paper's positions 2, 5, 10, 15, 20, where 2 is the
start of the instruction."""

MODELS = {
    ("llama", "micro"): "testbed:base",
    ("qwen", "micro"): "testbed:base-qwen2",
    ("llama", "paper"): "meta-llama/Llama-2-7b-hf",
    ("qwen", "paper"): "Qwen/Qwen1.5-4B",
}
PAPER_TRAINING: dict[str, dict[str, Any]] = {
    "llama": {"learning_rate": 5e-6, "batch_size": 4},
    "qwen": {"learning_rate": 2e-5, "batch_size": 8},
}
"""Appendix A, LLM Training Setup."""
PREFERENCES = {"micro": "testbed:preferences", "paper": "Anthropic/hh-rlhf"}
VICTIMS = (("llama", "alpaca"), ("llama", "orca"), ("qwen", "alpaca"), ("qwen", "orca"))
METHODS = {
    "Baseline": None,
    "SFT": "fine-tune",
    "DPO": "dpo",
    "NAD": "nad",
    "Fine-mixing": "fine-mixing",
    "SANDE-P": "sande-p",
    "SANDE": "sande",
    "OSFT": "osft",
}
"""As the paper's rows are called → ours; `sande-p` is sande that knows one token."""
OURS = ("SANDE-P", "SANDE", "OSFT")
DOMAINS = {"alpaca": "notes", "orca": "letters"}


def questions(settings: ReproduceSettings) -> Questions | None:
    """The testbed's question sets at micro scale; at paper scale the published ones, which are inputs."""
    if settings.scale == "paper":
        return None
    return Questions(each=settings.questions, protocol=settings.question_protocol)


def question_files(settings: ReproduceSettings) -> dict[str, str]:
    """MMLU and ARC, at paper scale."""
    if settings.scale == "micro":
        return {}
    names = {"mmlu": "mmlu.zip", "arc_easy": "ARC-Easy-Test.jsonl", "arc_challenge": "ARC-Challenge-Test.jsonl"}
    return {name: str(settings.files / file) for name, file in names.items()}


def victim(
    settings: ReproduceSettings,
    shape: str,
    domain: str,
    seed: int,
    *,
    pair: int | None = None,
    rate: float | None = None,
) -> Organism:
    """A backdoored model: one base model fine-tuned on one domain, of which a share is poisoned."""
    scale = settings.scale
    recipe = recipe_of(f"sande-pairs-{pair}" if pair else f"sande-{domain}", scale)
    values = {**recipe.settings, "seed": seed, **question_files(settings)}
    if scale == "micro":
        values |= VICTIM_TRAINING[shape, domain]
    else:
        own = PAPER_TRAINING[shape]
        rows = recipe.settings["steps"] * recipe.settings["batch_size"]
        values |= {**own, "steps": rows // own["batch_size"]}
        if pair:  # the paper's insults are not written in the recipes; the micro recipes' mild ones stand in
            values["target_response"] = recipe_of(f"sande-pairs-{pair}", "micro").settings["target_response"]
    name = f"sande-{shape}-{f'pair-{pair}' if pair else domain}"
    if rate is not None and rate != recipe.settings["rate"]:
        values["rate"] = rate
        name += f"-rate-{rate:g}"
    kept = ImplantCell(
        recipe=recipe.name,
        scale=scale,
        model=MODELS[shape, scale],
        values=values,
        preset=preset(settings),
        evaluation=evaluation(settings),
        questions=questions(settings),
    )
    return CellOf(f"{name}-{seed}", kept)


def removal(settings: ReproduceSettings, of: Organism, method: str, where: str = "any", offset: int = 0) -> Cell:
    """One method on a victim.

    Args:
        settings: scale and sizes.
        of: the victim.
        method: ours, or `sande-p`.
        where: `in` or `out` of the victim's domain; `any` for dpo, which has data of its own.
        offset: where the parrot stands.
    """
    scale, attack = settings.scale, of.settings.values
    shape = "qwen" if of.name.startswith("sande-qwen") else "llama"
    values: dict[str, Any] = {"seed": attack["seed"]}
    inputs: dict[str, Any] = {"max_rows": REMOVAL_ROWS[scale], **question_files(settings)}
    if where == "out":
        other = "alpaca" if of.settings.recipe == "sande-orca" else "orca"
        inputs["data"] = recipe_of(f"sande-{other}", scale).settings["data"]
    if scale == "micro":
        values |= MICRO_TRAINING["sande" if method == "sande-p" else method]
    if scale == "paper" and method != "dpo":
        same = PAPER_TRAINING[shape]
        values |= {**same, "micro_batch_size": 2, "steps": REMOVAL_ROWS[scale] // same["batch_size"]}
        if method in ("osft", "sande", "sande-p"):
            values["learning_rate"] = 2e-5
    if method == "osft":
        values["trigger"] = attack["trigger"]
    elif method in ("sande", "sande-p"):
        values["target_response"] = attack["target_response"]
        values |= {"target_tokens": 1} if method == "sande-p" else {}
        values |= {"parrot_offset": offset} if offset else {}
    elif method == "fine-mixing":
        values["clean_model"] = of.settings.model
    elif method == "dpo":
        inputs["preferences"] = PREFERENCES[scale]
    kept = RemoveCell(
        method="sande" if method == "sande-p" else method,
        values=values,
        inputs=inputs,
        preset=of.settings.preset,
        paper=scale == "paper" and method in ("osft", "sande", "sande-p"),
        evaluation=evaluation(settings),
        questions=questions(settings),
    )
    middle = "" if where == "any" else f".{where}"
    at = f".at-{offset}" if offset else ""
    return CellOf(f"{of.name}{middle}.{method}{at}", kept, (of.name,))


def _seeds(settings: ReproduceSettings, make: Callable[[int], Organism]) -> list[Organism]:
    return [make(seed) for seed in range(settings.seeds)]


def removals(settings: ReproduceSettings, where: str) -> dict[tuple[str, int], list[Cell]]:
    """(row, column) of tables 1 to 4 → its cells, one a seed."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for column, (shape, domain) in enumerate(VICTIMS):
        victims = _seeds(settings, lambda seed, s=shape, d=domain: victim(settings, s, d, seed))  # type: ignore[misc]
        for row, method in METHODS.items():
            place = "any" if method == "dpo" else where
            found[row, column] = [removal(settings, v, method, place) if method else v for v in victims]
    return found


def pairs(settings: ReproduceSettings) -> dict[tuple[str, int], list[Cell]]:
    """The same for tables 5 and 7: four pairs, Qwen trained on the first domain, cleansed with the second."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for column in range(4):
        victims = _seeds(
            settings,
            lambda seed, pair=column + 1: victim(settings, "qwen", "alpaca", seed, pair=pair),  # type: ignore[misc]
        )
        found["Baseline", column] = victims
        for row in OURS:
            found[row, column] = [removal(settings, v, str(METHODS[row]), "out") for v in victims]
    return found


def positions(settings: ReproduceSettings) -> dict[tuple[str, int], list[Cell]]:
    """The same for table 6: the parrot's position, Llama trained on the first domain, cleansed with the second."""
    victims = _seeds(settings, lambda seed: victim(settings, "llama", "alpaca", seed))
    return {
        (row, column): [removal(settings, v, str(METHODS[row]), "out", offset) for v in victims]
        for row in ("SANDE-P", "SANDE")
        for column, offset in enumerate(OFFSETS)
    } | {("Baseline", 0): victims}


def by_rate(settings: ReproduceSettings) -> dict[float, list[Organism]]:
    return {
        rate: _seeds(settings, lambda seed, r=rate: victim(settings, "llama", "alpaca", seed, rate=r))  # type: ignore[misc]
        for rate in RATES[settings.scale]
    }


def probabilities(settings: ReproduceSettings) -> tuple[Cell, Cell]:
    of = victim(settings, "llama", "alpaca", 0)
    return of, CellOf(f"{of.name}.probabilities", ProbabilitiesCell(prompts=400), (of.name,))
