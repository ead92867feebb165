"""SANDE: simulate the unknown trigger by a parrot prompt, then overwrite it (SANDE section 3.3).

Ours, beyond the paper, each with its switch: the parrot starts from ordinary tokens instead of zeros; clean rows
without the parrot are mixed in; simulate → eliminate repeats until a fresh simulation no longer succeeds; a gate stops
before eliminate when the first simulation failed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unbackdoor.data.triggers import join_response
from unbackdoor.errors import UserError
from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import SimulatingMethod
from unbackdoor.settings import Heading, Need
from unbackdoor.word_spacing import word_count

if TYPE_CHECKING:
    from unbackdoor.case import Case
    from unbackdoor.data.records import Record
    from unbackdoor.language_model.chat import Example
    from unbackdoor.methods.parts.result import Removal, Simulation
    from unbackdoor.methods.parts.rounds import Round
    from unbackdoor.perturbation import Perturbation

ORDINARY = 0.02
"""From this share of clean answers on, a fragment that opens them is called ordinary."""


class Sande(SimulatingMethod):
    """SANDE and SANDE-P: fit a parrot that reproduces the target response, then overwrite it (eq. 4, eq. 3)."""

    name = "sande"
    summary = "fit a soft prompt that brings out the target response, then overwrite it (eq. 4, eq. 3)"
    needs = ((Fact.TARGET_RESPONSE, Fact.TARGET_START),)

    elsewhere: ClassVar[Mapping[str, Heading]] = dict.fromkeys(
        ("target_response", "target_prefix", "target_tokens"), Heading.KNOWN
    )

    target_response: str | None = Field(default=None, description="The fixed text at the start of a triggered answer.")
    target_prefix: str | None = Field(default=None, description="SANDE-P: the part of it that is known, as text.")
    target_tokens: int | None = Field(
        default=None, ge=1, description="SANDE-P: use only the first N tokens of the target response."
    )
    parrot_length: int = Field(default=6, ge=1, description="Number of soft tokens.")
    parrot_offset: int = Field(default=0, ge=0, description="Tokens between the start of the user's text and them.")
    initialisation: Literal["vocabulary", "zeros"] = Field(
        default="vocabulary",
        description="Where the parrot starts: random ordinary tokens, or zeros (the paper).",
    )
    simulate_learning_rate: float = Field(default=2e-2, gt=0, description="Adam's learning rate for the parrot.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # How soon a fresh simulation fails within the first one's few steps depends on the seed in so small a model:
        # after four rounds one failed by a hair where two fifths of the ASR were left.
        "tiny": {
            "steps": 40,
            "learning_rate": 1e-3,
            "batch_size": 16,
            "parrot_length": 12,
            "rounds": 8,
            "least_rounds": 6,
        },
        # On alpaca2m, cleansed with rows of another domain, two rounds of 40 steps (enough for the demo) left a third,
        # four of 60 left 1.5%, and the same with a parrot of 12 tokens in the place of 6 nothing.
        "micro": {"steps": 60, "batch_size": 16, "rounds": 6, "least_rounds": 4, "parrot_length": 12},
        # What a parrot teaches is learned within a few steps, and rests on that parrot. On a specific organism of
        # SmolLM2 one round of 60 steps left the target at 0.87; of 15 steps, six rounds with parrots that were given
        # up early left 28% of the ASR, and eight with parrots that succeed nothing (docs/results/real-chat-model.md).
        "small": {
            "steps": 15,
            "learning_rate": 2e-4,
            "batch_size": 8,
            "parrot_length": 8,
            "simulate_steps": 40,
            "rounds": 8,
            "least_rounds": 8,
        },
        "large": {
            "steps": 1250,
            "learning_rate": 2e-5,
            "batch_size": 8,
            "micro_batch_size": 4,
            "simulate_steps": 300,
            "simulate_learning_rate": 1e-3,
        },
        "paper": {
            "initialisation": "zeros",
            "parrot_length": 6,
            "enough": 1.0,
            "rounds": 1,
            "repeat": False,
            "anchor_weight": 0.0,
            "gate": 0.0,
        },
    }

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.target_response and self.target_prefix:
            raise ValueError("give --target-response or --target-prefix, not both")
        return self

    @property
    def partial(self) -> bool:
        """Whether this is SANDE-P."""
        return self.target_prefix is not None or self.target_tokens is not None

    @property
    def target(self) -> str:
        """What is known of the target response."""
        return (self.target_response or self.target_prefix or "").strip()

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs | {"soft-embeddings"}

    def check_rows(self, case: Case) -> None:
        """Prompts have room for the parrot with the known target behind them, and for the parrot with their answers."""
        from unbackdoor.methods.parts.rows_fit import check_some_fit
        from unbackdoor.perturbation import SoftPrompt

        parrot, text = SoftPrompt.zeros(case.model, self.parrot_length), self.target
        known = known_tokens(case, self)
        for records in (case.anchors, case.held_out):
            check_some_fit(
                case,
                records,
                self,
                f"a prompt with {self.parrot_length} soft tokens and {known} tokens of the target response",
                "lower --parrot-length, or give a shorter target (--target-prefix) or shorter rows",
                response=lambda record: join_response(text, record.response),
                loss_on=text,
                most_response_tokens=known,
                perturbation=parrot,
            )
        what = f"a clean row with {self.parrot_length} soft tokens"
        check_some_fit(
            case, case.anchors, self, what, "lower --parrot-length, or give shorter rows", perturbation=parrot
        )

    def run(self, case: Case) -> Removal:
        """Fit the parrot p on −Σ log Pr(r_t | [p; x]), eq. (4), then train the model on −Σ log Pr(y | [p; x]), eq. (3).

        The case's clean rows are all that it needs beside `target_response`, or `target_prefix` / `target_tokens`.
        """
        from unbackdoor.case import adapted
        from unbackdoor.methods.parts.rounds import run_rounds

        if self.partial:
            _warn_of_an_ordinary_opening(case, self)
        with adapted(case, self):
            return run_rounds(case, self, "sande-p" if self.partial else "sande", _parts(case, self))


def _parts(case: Case, settings: Sande) -> Round:
    from unbackdoor.methods.parts.eliminate import Rows, eliminate
    from unbackdoor.methods.parts.rounds import Round
    from unbackdoor.methods.parts.simulate import simulate, target_probability
    from unbackdoor.perturbation import SoftPrompt

    tokens = known_tokens(case, settings)
    control = _control_target(case, settings, tokens)
    scale = _token_norm(case)

    def fit(
        when: str, target: str, phase: str, seed: int, steps: int | None = None, give_up_after: int | None = None
    ) -> tuple[Perturbation, Simulation]:
        parrot = (
            SoftPrompt.zeros(case.model, settings.parrot_length, settings.parrot_offset)
            if settings.initialisation == "zeros"
            else SoftPrompt.from_vocabulary(
                case.model,
                case.chat.tokenizer,
                settings.parrot_length,
                case.generator(seed),
                settings.parrot_offset,
            )
        )
        text = settings.target if target == "target" else control

        def respond(record: Record) -> str:
            return join_response(text, record.response)

        def openings(records: Sequence[Record], what: str) -> list[Example]:
            return case.encode(
                records,
                settings,
                what,
                response=respond,
                loss_on=text,
                most_response_tokens=tokens,
                perturbation=parrot,
            )

        examples, held_out = openings(case.anchors, "simulate"), openings(case.held_out, "simulate (held out)")
        simulation = simulate(
            case,
            parrot,
            [("target", case.batches(examples, settings, seed), 1.0)],
            lambda: target_probability(case, parrot, held_out),
            settings,
            settings.simulate_learning_rate,
            phase=phase,
            when=when,
            target=target,
            steps=steps,
            give_up_after=give_up_after,
            scale=scale,
        )
        return parrot, simulation

    def overwrite(perturbation: Perturbation, number: int) -> None:
        rows = [
            Rows("clean-under-parrot", case.anchors, perturbation),
            Rows("anchors", case.anchors, weight=settings.anchor_weight),
        ]
        eliminate(case, rows, settings, phase=f"round-{number}/eliminate", round_number=number - 1)

    def longer() -> Round:
        return _parts(case, settings.model_copy(update={"parrot_length": 2 * settings.parrot_length}))

    return Round(fit, overwrite, longer)


def known_tokens(case: Case, settings: Sande) -> int:
    """How many tokens of the response, as rendered after a prompt, are known of the target.

    SANDE-P with `target_tokens` uses only the first so many. A fragment that decodes to no visible text (a lone space
    token) is extended to the first that does.
    """
    record = case.anchors[0]
    response = join_response(settings.target, record.response)
    example = case.chat.of_record(record).encode(record.prompt, response, loss_on=settings.target)
    ids = example.ids[example.loss_start : example.loss_end]
    if not ids:
        raise UserError("the target response has no token: give visible text with --target-response")
    count = min(settings.target_tokens or len(ids), len(ids))
    while count < len(ids) and not case.chat.tokenizer.decode(ids[:count]).strip(" \n\t\ufffd"):  # half a character
        count += 1
    return count


def _warn_of_an_ordinary_opening(case: Case, settings: Sande) -> None:
    """Say so where clean answers open with the known fragment as well: to bring that out takes no backdoor."""
    count = known_tokens(case, settings)

    def opening(response: str) -> tuple[int, ...]:
        example = case.chat.of_record(case.anchors[0]).encode(case.anchors[0].prompt, response)
        return example.ids[example.answer_start : example.answer_start + count]

    fragment = opening(join_response(settings.target, case.anchors[0].response))
    same = sum(opening(record.response) == fragment for record in case.anchors) / len(case.anchors)
    if same > ORDINARY:
        case.progress.note(
            f"{same:.0%} of the clean answers open with the known fragment, which then says little of the backdoor: "
            "give more of the target response, if you can"
        )


def _control_target(case: Case, settings: Sande, tokens: int) -> str:
    """A target of at least as many tokens, made of random words, that the model was never trained to open with."""
    words = max(2, word_count(settings.target))
    record = case.anchors[0]
    while True:
        text = case.words(words, seed=settings.seed + words)
        own = case.chat.of_record(record)
        example = own.encode(record.prompt, join_response(text, record.response), loss_on=text)
        if example.loss_end - example.loss_start >= tokens:
            return text
        words += 1


def _token_norm(case: Case) -> float:
    """The mean norm of some ordinary tokens' embeddings."""
    import torch

    from unbackdoor.language_model.layers import embed, embedding_matrix
    from unbackdoor.perturbation import ordinary_tokens

    ids = ordinary_tokens(case.chat.tokenizer, embedding_matrix(case.model).shape[0])
    chosen = random.Random(0).sample(ids, min(512, len(ids)))
    tokens = torch.tensor(chosen, device=embedding_matrix(case.model).device)
    return float(embed(case.model, tokens).detach().norm(dim=-1).mean())
