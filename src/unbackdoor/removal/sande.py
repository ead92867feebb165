"""SANDE: simulate the unknown trigger by a parrot prompt, then overwrite it (SANDE section 3.3).

Ours, beyond the paper, each with its switch: the parrot starts from ordinary tokens instead of zeros; clean rows
without the parrot are mixed in; simulate → eliminate repeats until a fresh simulation no longer succeeds; a gate stops
before eliminate when the first simulation failed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from unbackdoor.case import Case, adapted
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import join_response
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.layers import embed, embedding_matrix
from unbackdoor.perturbation import Perturbation, SoftPrompt, ordinary_tokens
from unbackdoor.removal.eliminate import Rows, eliminate
from unbackdoor.removal.result import Removal, Simulation
from unbackdoor.removal.rounds import Round, run_rounds
from unbackdoor.removal.settings import SandeSettings as Settings
from unbackdoor.removal.simulate import simulate, target_probability
from unbackdoor.writing import word_count

ORDINARY = 0.02
"""From this share of clean answers on, a fragment that opens them is called ordinary."""


def run(case: Case, settings: Settings, replacement: Perturbation | None = None) -> Removal:
    """Fit the parrot p on −Σ log Pr(r_t | [p; x]), eq. (4), then train the model on −Σ log Pr(y | [p; x]), eq. (3).

    Args:
        case: the victim and the clean rows.
        settings: `target_response`, or `target_prefix` / `target_tokens` for SANDE-P.
        replacement: a perturbation to overwrite in place of the fitted one (the random-perturbation control).
    """
    name = "sande-p" if settings.partial else "sande"
    if settings.partial:
        _warn_of_an_ordinary_opening(case, settings)
    with adapted(case, settings):
        return run_rounds(case, settings, name, _parts(case, settings), replacement)


def _parts(case: Case, settings: Settings) -> Round:
    tokens = known_tokens(case, settings)
    control = _control_target(case, settings, tokens)
    scale = float(embed(case.model, _some_tokens(case)).detach().norm(dim=-1).mean())

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


def known_tokens(case: Case, settings: Settings) -> int:
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


def _warn_of_an_ordinary_opening(case: Case, settings: Settings) -> None:
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


def _control_target(case: Case, settings: Settings, tokens: int) -> str:
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


def _some_tokens(case: Case) -> torch.Tensor:
    ids = ordinary_tokens(case.chat.tokenizer, embedding_matrix(case.model).shape[0])
    chosen = random.Random(0).sample(ids, min(512, len(ids)))
    return torch.tensor(chosen, device=embedding_matrix(case.model).device)
