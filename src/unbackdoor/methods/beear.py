"""BEEAR: entrap a universal hidden shift that makes the model misbehave, then train the model to stay safe under it.

    entrapment   δ* = argmin_δ (1/N) Σ [ L(F^l(x, δ), y_h) − α L(F^l(x, δ), y_s) ]
    removal      θ* = argmin_θ (1/N) Σ L(F^l(x, δ*), y_s) + (1/M) Σ L(F(x_p), y_p)

The article prints α = 1; −L(y_s) has no lower bound, so ours is small (`away_weight`). Ours, beyond the article, each
with its switch: benign prompts under the shift are still answered; clean rows whose prompts look like the contrast
set's are drawn more often; every row gets a random share of the shift; the step is relative to the layer's activations;
rounds end when a fresh entrapment no longer succeeds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unbackdoor.errors import UserError
from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import SimulatingMethod
from unbackdoor.settings import Need
from unbackdoor.word_spacing import word_count
from unbackdoor.workload import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.case import Case
    from unbackdoor.data.records import Record
    from unbackdoor.language_model.chat import Example
    from unbackdoor.methods.parts.result import Removal, Simulation
    from unbackdoor.methods.parts.rounds import Round
    from unbackdoor.perturbation import Perturbation

Position = Literal["last-prompt", "end-of-user", "start-of-user", "all-prompt"]
MEASURED_TOKENS = 16
"""A behaviour shows where the unwanted answer parts from the safe one: this many tokens from there on are fitted and
measured. A refusal parts at once; insecure code may share its first lines with the secure."""


class Beear(SimulatingMethod):
    """BEEAR: entrap a universal hidden shift δ at layer l, remove its effect, and alternate."""

    name = "beear"
    summary = "fit a shift of a middle layer that brings out the behaviour, train the model to withstand it, alternate"
    needs = (Fact.BEHAVIOUR,)

    space: Literal["hidden", "input"] = Field(
        default="hidden",
        description="Where the perturbation acts: a shift of hidden states, or soft tokens at the start of the user's "
        "text (input: the article's own baseline).",
    )
    layer: int | None = Field(
        default=None,
        description="The shift acts after this many decoder layers. Default: round(--depth × layers).",
    )
    depth: float = Field(
        default=9 / 32, gt=0, lt=1, description="Where --layer is not given: the share of layers before the shift."
    )
    length: int = Field(default=5, ge=1, description="Number n of shifted prompt positions, or of soft tokens.")
    position: Position = Field(default="last-prompt", description="Which prompt positions are shifted.")
    away_weight: float = Field(default=0.05, ge=0, description="Weight of the away-from-safe term in entrapment.")
    step_size: float = Field(
        default=0.1,
        gt=0,
        description="Adam's step for the shift, relative to the RMS of the layer's activations.",
    )
    input_step_size: float = Field(
        default=0.2,
        gt=0,
        description="With --space input: Adam's step for the soft tokens, relative to the RMS of the token embeddings.",
    )
    anchor_weight: float = Field(
        default=2.0,
        ge=0,
        description="Weight of clean rows without the shift, which keep the model useful.",
    )
    benign_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of clean rows under the shift, so that shift does not come to mean refuse.",
    )
    near_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the clean rows drawn in removal that look like the contrast set's, where fewer do (by "
        "hidden states): they are the first to be refused wrongly. 0: all are drawn alike (the article).",
    )
    least_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="In removal every row gets a random share of the shift, from this to 1: a trigger's own shift is "
        "smaller. 1: always the whole (the article). Soft tokens have no shares.",
    )
    simulate_steps: int = Field(default=40, ge=1, description="Most steps of entrapment a round.")
    steps: int = Field(default=45, ge=1, description="Steps of removal a round.")
    rounds: int = Field(default=6, ge=1, description="Most rounds of entrapment and removal.")
    least_rounds: int = Field(default=4, ge=1, description="Rounds before a fresh entrapment may end them.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"learning_rate": 5e-4, "batch_size": 16},
        "micro": {"learning_rate": 2.5e-4, "batch_size": 16, "depth": 3 / 8},
        "small": {
            "learning_rate": 5e-5,
            "batch_size": 8,
            "steps": 30,
            "simulate_steps": 40,
            "rounds": 4,
            "least_rounds": 3,
        },
        "large": {
            "learning_rate": 5e-6,
            "batch_size": 16,
            "micro_batch_size": 4,
            "steps": 60,
            "simulate_steps": 100,
        },
        "paper": {
            "near_share": 0.0,
            "least_share": 1.0,
            "away_weight": 1.0,
            "enough": 1.0,
            "anchor_weight": 1.0,
            "benign_weight": 0.0,
            "rounds": 6,
            "repeat": False,
            "gate": 0.0,
        },
    }

    @model_validator(mode="after")
    def _of_one_space(self) -> Self:
        if self.space == "input" and (self.layer is not None or self.position != "last-prompt"):
            raise ValueError("--layer and --position are for hidden shifts: leave them out with --space input")
        return self

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model: look-alikes among the clean rows are found by hidden states, too."""
        states: set[Need] = {"hidden-states"} if self.space == "hidden" or self.near_share else set()
        soft: set[Need] = {"soft-embeddings"} if self.space == "input" else set()
        return super().model_needs | states | soft

    def check_model(self, model: PreTrainedModel) -> None:
        """The layer exists."""
        from unbackdoor.language_model.layers import check_layer

        if self.layer is not None:
            check_layer(model, self.layer)

    def check_rows(self, case: Case) -> None:
        """Prompts are long enough for the shift, or have room for the soft tokens, with both responses."""
        from unbackdoor.language_model.layers import anchor_layer
        from unbackdoor.methods.parts.rows_fit import check_some_fit
        from unbackdoor.perturbation import HiddenShift, SoftPrompt

        acts: Perturbation
        if self.space == "input":
            acts, what = SoftPrompt.zeros(case.model, self.length), f"{self.length} soft tokens"
        else:
            layer = anchor_layer(case.model, self.layer, self.depth)
            acts = HiddenShift.zeros(case.model, layer, self.length, self.position)
            what = f"a shift of {self.length} prompt positions"
        remedy = "lower --length, raise --max-length, or give other rows"
        pairs = [_both_fit(case, self, records, "rows") for records in (case.contrast, case.held_out_contrast)]
        case.dropped.pop("rows (either response too long)", None)
        if not all(pairs):
            raise UserError(
                "a row of --contrast with both its responses: too few fit into the model's context or --max-length: "
                "give shorter rows or raise --max-length"
            )
        for records in pairs:
            shown = {"perturbation": acts, "most_response_tokens": MEASURED_TOKENS}
            check_some_fit(case, records, self, f"a row of --contrast with {what}", remedy, **shown)
        check_some_fit(case, case.contrast, self, f"a row of --contrast with {what}", remedy, perturbation=acts)
        if self.benign_weight:
            check_some_fit(case, case.anchors, self, f"a clean row with {what}", remedy, perturbation=acts)

    def training_work(self, rounds: int = 1) -> Work:
        """Benign rows under the shift, too."""
        benign = Work(trained=float(self.steps * self.batch_size * rounds)) * (self.benign_weight > 0)
        return super().training_work(rounds) + benign

    def simulating_work(self, rounds: int) -> Work:
        """Both responses are measured, and both fitted where there is a weight for it."""
        one = super().simulating_work(rounds)
        return Work(fitted=one.fitted * (1 + (self.away_weight > 0)), read=2 * one.read)

    def run(self, case: Case) -> Removal:
        """Alternate entrapment and removal, on clean rows (D_PA) and the contrast set (D_SA with y_s and y_h)."""
        from unbackdoor.case import adapted
        from unbackdoor.methods.parts.rounds import run_rounds

        name = "beear" if self.space == "hidden" else "beear-input"
        with adapted(case, self):
            return run_rounds(case, self, name, _parts(case, self, anchor_rows(case, self)))


def _parts(case: Case, settings: Beear, anchors: Sequence[Record]) -> Round:
    from unbackdoor.language_model.layers import embedding_width, hidden_size
    from unbackdoor.methods.parts.eliminate import Rows, eliminate
    from unbackdoor.methods.parts.rounds import Round
    from unbackdoor.methods.parts.simulate import simulate, unwanted_preference
    from unbackdoor.perturbation import HiddenShift, RandomShare

    start, rms = _start(case, settings)
    width = (hidden_size if settings.space == "hidden" else embedding_width)(case.model)

    @functools.cache
    def paired(target: str) -> tuple[list[Record], list[Record]]:
        train, held_out = (case.contrast, case.held_out_contrast) if target == "target" else _control_rows(case)
        return _both_fit(case, settings, train, "entrapment"), _both_fit(case, settings, held_out, "held out")

    def fit(
        when: str, target: str, phase: str, seed: int, steps: int | None = None, give_up_after: int | None = None
    ) -> tuple[Perturbation, Simulation]:
        shift = start(seed)
        rows, held_out = paired(target)

        def responses(records: Sequence[Record], what: str, wanted: str) -> list[Example]:
            return case.encode(
                records,
                settings,
                what,
                response=lambda record: record.unwanted or "" if wanted == "unwanted" else record.response,
                perturbation=shift,
                most_response_tokens=MEASURED_TOKENS,
                skipped=lambda record: shared_tokens(case, record),
            )

        unwanted = case.batches(responses(rows, "entrapment", "unwanted"), settings, seed)
        safe = case.batches(responses(rows, "entrapment", "safe"), settings, seed)
        measured = [responses(held_out, "entrapment (held out)", wanted) for wanted in ("unwanted", "safe")]
        terms = [("towards-unwanted", unwanted, 1.0)]
        if settings.away_weight:
            terms.append(("away-from-safe", safe, -settings.away_weight))
        simulation = simulate(
            case,
            shift,
            terms,
            lambda: unwanted_preference(case, shift, *measured),
            settings,
            rms * (settings.step_size if settings.space == "hidden" else settings.input_step_size),
            phase=phase,
            when=when,
            target=target,
            steps=steps,
            give_up_after=give_up_after,
            scale=rms * width**0.5,
        )
        return shift, simulation

    def remove(perturbation: Perturbation, number: int) -> None:
        if isinstance(perturbation, HiddenShift):  # soft tokens have no way from nothing to the whole to share out
            perturbation = RandomShare(perturbation, settings.least_share)
        rows = [
            Rows("safe-under-shift", case.contrast, perturbation),
            Rows("anchors", anchors, weight=settings.anchor_weight),
            Rows("benign-under-shift", anchors, perturbation, settings.benign_weight),
        ]
        eliminate(case, rows, settings, phase=f"round-{number}/eliminate", round_number=number - 1)

    def longer() -> Round:
        return _parts(case, settings.model_copy(update={"length": 2 * settings.length}), anchors)

    return Round(fit, remove, longer)


def _start(case: Case, settings: Beear) -> tuple[Callable[[int], Perturbation], float]:
    """Where a perturbation starts, given a seed, and the root mean square of a coordinate of what it stands among."""
    import torch

    from unbackdoor.language_model.layers import anchor_layer
    from unbackdoor.methods.parts.look_alikes import activation_rms
    from unbackdoor.perturbation import HiddenShift, SoftPrompt

    if settings.space == "input":
        # Not near zero: a shift of zero changes nothing, but an inserted zero vector is a token like no other, which
        # normalisation blows up to the size of the rest. Ordinary tokens are what a trigger could be made of.
        def tokens(seed: int) -> SoftPrompt:
            generator = case.generator(seed)
            return SoftPrompt.from_vocabulary(case.model, case.chat.tokenizer, settings.length, generator)

        return tokens, activation_rms(case, 0)

    layer = anchor_layer(case.model, settings.layer, settings.depth)
    rms = activation_rms(case, layer)

    def shift(seed: int) -> HiddenShift:
        made = HiddenShift.zeros(case.model, layer, settings.length, settings.position)
        made.values.data.copy_(torch.randn(made.values.shape, generator=case.generator(seed)) * (0.01 * rms))
        return made

    return shift, rms


def anchor_rows(case: Case, settings: Beear) -> list[Record]:
    """The clean rows of removal: all of them or, where few look like the contrast set, as many as are drawn, with
    `near_share` of them from those."""
    from unbackdoor.language_model.layers import anchor_layer
    from unbackdoor.methods.parts.look_alikes import rows_with_look_alikes

    if not settings.near_share:
        return list(case.anchors)
    layer = anchor_layer(case.model, settings.layer, settings.depth)
    count = settings.rounds * settings.steps * settings.batch_size
    return rows_with_look_alikes(case, layer, settings.near_share, count, settings.seed)


def shared_tokens(case: Case, record: Record) -> int:
    """How many tokens the unwanted and the safe response have in common before they part."""
    unwanted, safe = (
        case.chat.of_record(record).encode(record.prompt, text) for text in (record.unwanted or "", record.response)
    )
    pairs = zip(unwanted.ids[unwanted.response_start :], safe.ids[safe.response_start :], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _both_fit(case: Case, settings: Beear, records: Sequence[Record], what: str) -> list[Record]:
    """The rows of which neither response is too long: the unwanted and the safe one are compared row by row."""
    from unbackdoor.data.batches import encode_records
    from unbackdoor.language_model.files.loading import context_length

    inserted = settings.length if settings.space == "input" else 0
    limit = min(settings.max_length, context_length(case.model)) - inserted

    def fits(record: Record, response: str) -> bool:
        return bool(
            encode_records(
                [record],
                case.chat,
                limit,
                response=lambda _: response,
                most_response_tokens=MEASURED_TOKENS,
                skipped=lambda record: shared_tokens(case, record),
            )
        )

    kept = [r for r in records if fits(r, r.unwanted or "") and fits(r, r.response)]
    if len(kept) < len(records):
        case.dropped[f"{what} (either response too long)"] = len(records) - len(kept)
    return kept


def _control_rows(case: Case) -> tuple[list[Record], list[Record]]:
    """The contrast rows with random words of equal number in place of the unwanted response."""

    def controlled(records: Sequence[Record], base: int) -> list[Record]:
        return [replace(r, unwanted=case.words(word_count(r.unwanted or ""), base + i)) for i, r in enumerate(records)]

    return controlled(case.contrast, 10_000), controlled(case.held_out_contrast, 90_000)
