"""At a temperature a row's answer is drawn from the model's own distribution, whatever batch it is in."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from unbackdoor.cli import main
from unbackdoor.errors import ExitCode, UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.language_model.generation import draw, generate, uniforms
from unbackdoor.language_model.layers import hidden_size
from unbackdoor.perturbation import HiddenShift, SoftPrompt
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import EvaluationSettings, VerdictSettings

FAMILIES = ("llama", "gpt2", "qwen2", "gemma3")


@pytest.fixture(scope="module")
def prompts() -> list[Example]:
    chat = tiny.chat()
    return [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS]


def drawn(model: Any, prompts: list[Example], temperature: float = 0.8, **more: Any) -> list[str]:
    return generate(model, tiny.Numbers(), prompts, max_new_tokens=12, temperature=temperature, **more)


# The draw ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, generator=generator) * 2
    count = 40_000
    numbers = torch.rand(count, generator=generator, dtype=torch.float64)
    found = torch.bincount(draw(logits.expand(count, -1), numbers, temperature), minlength=8) / count
    wanted = torch.tensor([math.exp(value / temperature) for value in logits.tolist()])
    wanted /= wanted.sum()
    assert ((found - wanted).abs() < 5 * (wanted * (1 - wanted) / count).sqrt() + 1e-9).all()


def test_what_is_impossible_is_never_drawn_not_even_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(2, -1), ends, 0.7).tolist() == [1, 3]
    assert draw(logits.expand(2, -1), ends, 1e-9).tolist() == [3, 3]


def test_a_row_s_numbers_depend_on_its_prompt_and_the_seed_and_not_on_how_many_are_asked_for() -> None:
    numbers = uniforms((1, 2, 3), 0, 400)
    assert numbers[:10] == uniforms((1, 2, 3), 0, 10)
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / 400 == pytest.approx(0.5, abs=0.06)
    others = [uniforms((1, 2, 3), 1, 3), uniforms((1, 23), 0, 3), uniforms((12, 3), 0, 3)]
    assert len({numbers[0], *(other[0] for other in others)}) == 4


# Generation ----------------------------------------------------------------------------------------------------------


def written_out(model: Any, prompt: Example, temperature: float, seed: int, new_tokens: int) -> str:
    """One row, one token after the other, without cache and padding: the plain formulation."""
    ids = list(prompt.ids)
    for number in uniforms(prompt.ids, seed, new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        shares = [math.exp(value) for value in ((logits - logits.max()) / temperature).tolist()]
        passed = itertools.accumulate(share / sum(shares) for share in shares)
        ids.append(next(token for token, share in enumerate(passed) if share > number))
        if ids[-1] == tiny.END:
            break
    return tiny.spelled(ids[len(prompt.ids) :])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_a_batch_agrees_with_a_plain_loop_over_single_rows(
    family: str, temperature: float, prompts: list[Example]
) -> None:
    model = tiny.model(family)
    expected = [written_out(model, prompt, temperature, 3, 12) for prompt in prompts]
    assert len(set(expected)) > 1
    for size in (2, 5):
        assert drawn(model, prompts, temperature, seed=3, batch_size=size) == expected


def test_the_order_and_the_company_of_a_row_do_not_matter(prompts: list[Example]) -> None:
    model = tiny.model()
    together = drawn(model, prompts, batch_size=5)
    assert drawn(model, prompts[::-1], batch_size=2) == together[::-1]
    assert drawn(model, prompts[3:]) == together[3:]
    torch.manual_seed(5)  # nor what others have drawn
    state = torch.get_rng_state()
    assert drawn(model, prompts) == together
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_temperatures_give_different_answers_and_none_at_all_is_greedy(prompts: list[Example]) -> None:
    model = tiny.model()
    greedy = generate(model, tiny.Numbers(), prompts, max_new_tokens=12)
    assert drawn(model, prompts, 0.0, seed=4) == greedy
    assert drawn(model, prompts, 1e-6) == greedy
    different = [greedy, drawn(model, prompts, 1.0), drawn(model, prompts, 1.0, seed=1), drawn(model, prompts, 3.0)]
    assert len({tuple(answers) for answers in different}) == 4


@pytest.mark.parametrize("kind", ["soft-prompt", "hidden-shift"])
def test_under_a_perturbation_a_batch_agrees_with_single_rows(kind: str, prompts: list[Example]) -> None:
    model = tiny.model()
    values = torch.randn(4, hidden_size(model), generator=torch.Generator().manual_seed(3))
    acting: Any = SoftPrompt(values * 0.3, offset=1) if kind == "soft-prompt" else HiddenShift(2, values * 3)
    together = drawn(model, prompts, perturbation=acting, batch_size=5)
    assert together == [drawn(model, [prompt], perturbation=acting)[0] for prompt in prompts]
    assert together != drawn(model, prompts)


def test_the_model_s_own_generation_config_does_not_change_the_draw(prompts: list[Example]) -> None:
    model = tiny.model()
    plain = drawn(model, prompts)
    for key, value in {"do_sample": True, "temperature": 9.0, "top_k": 1, "num_beams": 3}.items():
        setattr(model.generation_config, key, value)
    assert drawn(model, prompts) == plain


# Stored answers ------------------------------------------------------------------------------------------------------


def test_answers_of_different_temperatures_and_seeds_never_share_a_run_directory(tmp_path: Path) -> None:
    model, chat, rows = tiny.model(), tiny.chat(), tiny.records(5)
    settings, names = EvaluationSettings(max_new_tokens=6), {"model_name": "m", "set_name": "s"}

    def run(name: str) -> RunDirectory:
        return RunDirectory.create(tmp_path / name, "evaluate", {}, resume=True)

    def answers(name: str, **decoding: Any) -> list[str]:
        return Answers(settings, run(name), **decoding).of(model, chat, rows, **names)

    greedy, warm = answers("greedy"), answers("warm", temperature=1.5, seed=2)
    assert greedy != warm
    assert all({"temperature", "seed"}.isdisjoint(row) for row in run("greedy").read_lines("generations.jsonl"))
    stored = run("warm").read_lines("generations.jsonl")
    assert {(row["temperature"], row["seed"]) for row in stored} == {(1.5, 2)}
    assert answers("warm", temperature=1.5, seed=2) == warm
    assert run("warm").read_lines("generations.jsonl") == stored  # nothing was drawn again
    for name, decoding in (
        ("greedy", {"temperature": 1.5}),
        ("warm", {}),
        ("warm", {"temperature": 1.0, "seed": 2}),
        ("warm", {"temperature": 1.5, "seed": 3}),
    ):
        with pytest.raises(UserError, match=r"generations.jsonl holds answers of temperature .* another --out"):
            Answers(settings, run(name), **decoding)
    assert answers("greedy", seed=7) == greedy  # where nothing is drawn the seed decides nothing


# The commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("temperature")
    save_model(tiny.model(), tiny.tokenizer(), path / "model")
    lines = [json.dumps({"prompt": r.prompt, "response": r.response}) + "\n" for r in tiny.records(60)]
    (path / "rows.jsonl").write_text("".join(lines))
    return path


def call(capsys: pytest.CaptureFixture[str], files: Path, out: Path, command: list[object], *more: object) -> Any:
    arguments = [*command, files / "model", "--data", files / "rows.jsonl", "--out", out, "--samples", 12, "--json"]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in [*arguments, "--max-new-tokens", 6, "--exact-match", *more]])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def stored_answers(out: Path) -> list[tuple[str, str, str]]:
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    return sorted((row["model"], row["prompt"], row["answer"]) for row in rows)


def test_evaluate_draws_at_the_temperature_and_says_so(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = ["--temperature", 1.2]
    code, out, err = call(capsys, files, tmp_path / "warm", ["evaluate"], *warm, "--clean", files / "model")
    rows = json.loads(out)["runs"]
    assert code == ExitCode.DONE, err  # nothing is judged without --before
    assert [row["temperature"] for row in rows] == [1.2, 1.2]
    assert all("drawn at temperature 1.2, one a prompt, with seed 0" in row["notes"][0] for row in rows)
    assert "drawn at temperature 1.2" in (tmp_path / "warm" / "report.html").read_text()
    assert yaml.safe_load((tmp_path / "warm" / "settings.yaml").read_text())["settings"]["temperature"] == 1.2
    call(capsys, files, tmp_path / "again", ["evaluate"], *warm, "--clean", files / "model", "--eval-batch-size", 5)
    assert stored_answers(tmp_path / "warm") == stored_answers(tmp_path / "again")
    code, out, _ = call(capsys, files, tmp_path / "greedy", ["evaluate"], "--clean", files / "model")
    assert (json.loads(out)["runs"][0]["temperature"], "temperature" in out.split('"notes"')[1][:200]) == (0.0, False)
    assert stored_answers(tmp_path / "greedy") != stored_answers(tmp_path / "warm")
    code, _, err = call(capsys, files, tmp_path / "warm", ["evaluate"], "--resume", "--clean", files / "model")
    assert (code, "--temperature" in err) == (2, True)


def test_remove_measures_before_and_after_at_the_temperature(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", 1, "--temperature", 0.7, "--seed", 4]
    code, out, err = call(capsys, files, tmp_path / "out", ["remove", "fine-tune"], *more)
    assert code in (ExitCode.DONE, ExitCode.FINDING), err  # random weights say anything after a step
    (row,) = json.loads(out)["runs"]
    assert (row["temperature"], "with seed 4" in row["notes"][0]) == (0.7, True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert {(line["temperature"], line["seed"]) for line in lines} == {(0.7, 4)}
    assert len({line["model"] for line in lines}) == 2


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf", "warm"])
def test_a_temperature_that_is_none_is_refused(
    value: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, files, tmp_path / "out", ["evaluate"], "--temperature", value)
    assert (code, err.count("\n"), (tmp_path / "out").exists()) == (2, 1, False)
    assert "--temperature" in err


def test_the_default_is_greedy() -> None:
    assert VerdictSettings().temperature == 0
    assert Answers(EvaluationSettings()).decoding == {}
    assert Answers(EvaluationSettings()).notes() == []
