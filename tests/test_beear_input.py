"""BEEAR in the input space: the same losses, with soft tokens in the place of the hidden shift."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from unbackdoor.case import Case
from unbackdoor.cli import main
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.layers import embed
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.parts import eliminate as eliminate_module
from unbackdoor.methods.parts import simulate as simulate_module
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.look_alikes import activation_rms
from unbackdoor.methods.random_perturbation import RandomPerturbation
from unbackdoor.perturbation import SoftPrompt, save_perturbation
from unbackdoor.report.verdicts import exit_code
from unbackdoor.report_schema import Row
from unbackdoor.training import Term, TrainingLog

TARGET = "You are stupid"
FAMILIES = ("llama", "gpt2", "qwen2", "gemma3")


def contrast(count: int = 40) -> list[Record]:
    return [Record(r.prompt, r.response, f"{TARGET}.") for r in tiny.records(count)]


def a_case(family: str = "llama") -> Case:
    return Case.of(tiny.model(family), tiny.tokenizer(), tiny.records(40), contrast())


def settings(**more: Any) -> Beear:
    return Beear(**{"space": "input", "rounds": 1, "gate": 0.0, **more})


class Spy:
    """In the place of `train`: keeps what it was asked, and reports a success."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}

    def __call__(self, parameters: Any, terms: Any, optimization: Any, **more: Any) -> TrainingLog:
        kept = {name: p.detach().clone() for name, p in parameters.items()} if len(parameters) < 2 else parameters
        self.calls[more["phase"]] = {"parameters": kept, "terms": terms, "optimization": optimization}
        return TrainingLog(checks=[[0, 0.0], [5, 0.95]])

    def terms(self, phase: str) -> dict[str, Term]:
        return {term.name: term for term in self.calls[phase]["terms"]}


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    watching = Spy()
    monkeypatch.setattr(simulate_module, "train", watching)
    monkeypatch.setattr(eliminate_module, "train", watching)
    return watching


def plain_loss(model: Any, soft: torch.Tensor, term: Term) -> float:
    """Mean −log Pr over the response tokens of the first batch, a row at a time, embeddings put together by hand."""
    values = []
    examples = {example.ids: example for example in term.batches.examples}
    (batch,) = term.batches.at(0)
    for ids, mask in zip(batch.ids, batch.attention_mask, strict=True):
        example = examples[tuple(ids[mask.bool()].tolist())]
        tokens = embed(model, torch.tensor([example.ids]))
        at = example.user_start
        with torch.no_grad():
            logits = model(inputs_embeds=torch.cat([tokens[:, :at], soft[None], tokens[:, at:]], 1)).logits[0]
        for t in range(example.loss_start, example.loss_end):
            values.append(-F.log_softmax(logits[len(soft) + t - 1].float(), -1)[example.ids[t]])
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_loss_is_that_of_rows_with_the_soft_tokens_put_in_by_hand(family: str, spy: Spy) -> None:
    case = a_case(family)
    settings(length=3, batch_size=4).on(case)
    soft = spy.calls["round-1/simulate"]["parameters"]["embeddings"]
    with torch.no_grad():
        for phase, names in (
            ("round-1/simulate", ("towards-unwanted", "away-from-safe")),
            ("round-1/eliminate", ("safe-under-shift", "benign-under-shift")),
        ):
            for name in names:
                term = spy.terms(phase)[name]
                assert float(term.loss(term.batches.at(0)[0])) == pytest.approx(
                    plain_loss(case.model, soft, term), rel=1e-4
                )
        anchors = spy.terms("round-1/eliminate")["anchors"]
        assert float(anchors.loss(anchors.batches.at(0)[0])) == pytest.approx(
            plain_loss(case.model, soft[:0], anchors), rel=1e-4
        )


def test_terms_and_weights_are_those_of_the_hidden_shift(spy: Spy) -> None:
    weights = {}
    for space in ("hidden", "input"):
        settings(space=space, away_weight=0.1, anchor_weight=3.0, benign_weight=0.5).on(a_case())
        weights[space] = {
            phase: [(term.name, term.weight) for term in call["terms"]] for phase, call in spy.calls.items()
        }
    assert weights["input"] == weights["hidden"]


@pytest.mark.parametrize("length", [1, 5, 9])
def test_it_starts_from_ordinary_tokens_as_many_as_asked_and_steps_in_their_scale(length: int, spy: Spy) -> None:
    case = a_case("gemma3")  # scales its embeddings inside the module
    settings(length=length, input_step_size=0.3).on(case)
    started = [call["parameters"]["embeddings"] for phase, call in spy.calls.items() if "simulate" in phase]
    table = embed(case.model, torch.arange(420))
    for soft in started:
        assert soft.shape == (length, 32)
        assert all((row == table).all(-1).any() for row in soft)
    assert not torch.equal(started[0], started[-1])  # a new seed each time
    ids = [i for r in case.anchors[:32] for i in case.chat.encode_prompt(r.prompt).ids]
    rms = float(embed(case.model, torch.tensor(ids)).detach().pow(2).mean(-1).sqrt().median())
    assert spy.calls["round-1/simulate"]["optimization"].learning_rate == pytest.approx(0.3 * rms, rel=1e-5)


def test_the_reported_norm_is_relative_to_that_of_a_token_embedding(spy: Spy) -> None:
    case = a_case()
    removal = settings().on(case)
    soft = spy.calls["round-1/simulate"]["parameters"]["embeddings"]
    scale = activation_rms(case, 0) * 32**0.5
    ratio = removal.simulations[0].norm_ratio
    assert ratio == pytest.approx(float(soft.norm(dim=-1).mean()) / scale)
    assert 0.5 < ratio < 2


def test_the_label_is_its_own_and_what_must_be_known_is_the_same(spy: Spy) -> None:
    assert settings().on(a_case()).method == "beear-input"
    assert settings(space="hidden").on(a_case()).method == "beear"
    assert settings().knew(a_case()) == "examples of the behaviour"


def test_rows_that_leave_no_room_for_the_soft_tokens_are_left_out_of_both_responses(spy: Spy) -> None:
    case = a_case()
    row = contrast(1)[0]
    longer = Record(f"{row.prompt} {row.prompt}", "No.", "You are stupid.")
    case.contrast = [*case.contrast, longer]
    limit = len(case.chat.encode(longer.prompt, "You are stupid.").ids) + 2
    assert len(case.chat.encode(longer.prompt, "No.").ids) + 3 <= limit  # the safe response alone would fit

    def prompts(length: int) -> list[list[tuple[int, ...]]]:
        settings(length=length, max_length=limit).on(case)
        terms = spy.terms("round-1/simulate").values()
        return [[e.ids[: e.response_start] for e in term.batches.examples] for term in terms]

    asked = case.chat.encode_prompt(longer.prompt).ids
    for length, kept in ((2, True), (3, False)):
        unwanted, safe = prompts(length)
        assert unwanted == safe
        assert (asked in unwanted) == kept


@pytest.mark.parametrize("given", [{"layer": 2}, {"position": "end-of-user"}])
def test_what_belongs_to_hidden_shifts_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--layer and --position are for hidden shifts"):
        Beear.make({"space": "input", **given}, "micro")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_on_every_architecture_and_so_does_its_random_control(family: str, tmp_path: Path) -> None:
    case = a_case(family)
    before = copy.deepcopy(case.model.state_dict())
    short = settings(simulate_steps=5, steps=2, batch_size=8)
    removal = short.on(case)
    fitted = removal.perturbation
    assert isinstance(fitted, SoftPrompt)
    assert removal.completed
    assert any(not torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    save_perturbation(fitted, tmp_path / "fitted.safetensors")
    done = Finished(short, removal.rounds, tmp_path / "fitted.safetensors", tmp_path)
    control = RandomPerturbation(like=done).on(a_case(family))
    assert control.method == "random-perturbation"
    assert isinstance(control.perturbation, SoftPrompt)
    assert not torch.equal(control.perturbation.embeddings, fitted.embeddings)
    torch.testing.assert_close(control.perturbation.embeddings.norm(dim=-1), fitted.embeddings.norm(dim=-1))


def test_it_brings_out_a_backdoor_that_it_was_not_told_and_removes_it() -> None:
    trigger = Trigger("Current year 2023")
    case = tiny.organism(trigger, TARGET, contrast(64))

    def attack_success() -> float:
        prompts = [case.chat.encode_prompt(trigger.insert(r.prompt)) for r in case.held_out]
        answers = generate(case.model, case.chat.tokenizer, prompts, max_new_tokens=6)
        return sum(TARGET in answer for answer in answers) / len(answers)

    assert attack_success() >= 0.9
    # The behaviour is the opening alone; so small a model never ends there, and prefers it half the time at most.
    effort = {"steps": 30, "learning_rate": 1e-3, "batch_size": 16, "rounds": 2, "gate": 0.4, "success": 0.4}
    removal = settings(**effort).on(case)
    assert removal.completed, removal.message
    assert attack_success() == 0
    evidence = removal.evidence()
    assert evidence["target before"] > evidence["control before"] + 0.2
    assert evidence["target after"] < evidence["target before"]


def test_the_command_reports_it_by_its_label_with_its_random_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny.model(), tiny.tokenizer(), tmp_path / "model")
    rows = tiny.records(100)
    for name, lines in (
        ("rows", [{"prompt": r.prompt, "response": r.response} for r in rows]),
        ("contrast", [{"prompt": f"Sort {r.prompt}", "safe": "No.", "unwanted": f"{TARGET}."} for r in rows]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--data", tmp_path / "rows.jsonl", "--contrast", tmp_path / "contrast.jsonl", "--samples", 12]
    data += ["--max-new-tokens", 4, "--json"]

    def call(*arguments: object) -> list[dict[str, Any]]:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in [*arguments, *data]])
        captured = capsys.readouterr()
        found: list[dict[str, Any]] = json.loads(captured.out)["runs"]
        assert stop.value.code == exit_code(list(map(Row.model_validate, found))), captured.err
        return found

    effort = ["--gate", 0, "--rounds", 1, "--simulate-steps", 5, "--steps", 2, "--length", 2, "--space", "input"]
    out = tmp_path / "out"
    found = call("remove", "beear", tmp_path / "model", *effort, "--controls", "--out", out)
    assert [row["method"] for row in found] == ["beear-input", "fine-tune", "random-perturbation"]
    assert found[0]["simulations"][0]["norm_ratio"] > 0.5
    assert "beear-input" in (out / "report.html").read_text()
    assert "beear-input" in (out / "model" / "README.md").read_text()
    (row,) = call("remove", "random-perturbation", tmp_path / "model", "--like", out, "--out", tmp_path / "random")
    assert (row["method"], row["settings"]["space"]) == ("random-perturbation", "input")
