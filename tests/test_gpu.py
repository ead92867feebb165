"""On a GPU: the same results as on a CPU, up to the rounding of bfloat16. Skipped where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from unbackdoor import training
from unbackdoor.data.batches import Batches
from unbackdoor.language_model import generation, loss
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.loss import response_loss
from unbackdoor.language_model.self_test import MOST_KL, self_test
from unbackdoor.methods.parts.simulate import perturbed_log_probabilities
from unbackdoor.perturbation import HiddenShift, Perturbation, SoftPrompt
from unbackdoor.run_directory import RunDirectory
from unbackdoor.training import Optimization, Term, TrainingLog, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PLACES = ("nothing", "soft prompt", "hidden shift")


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU computes in float32 as the CPU does, without the shorter formats of its matrix units."""

    def plain(device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    monkeypatch.setattr(loss, "autocast", plain)
    monkeypatch.setattr(generation, "autocast", plain)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def perturbation(place: str, model: torch.nn.Module) -> Perturbation:
    """The same values on any device."""
    made: Perturbation = Perturbation()
    if place == "soft prompt":
        made = SoftPrompt.zeros(model, 3)  # type: ignore[arg-type]
    elif place == "hidden shift":
        made = HiddenShift.zeros(model, 2, 3, "last-prompt")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def probabilities(device: str, family: str, place: str) -> torch.Tensor:
    model = tiny.model(family).to(device)
    inputs = collate(tiny.examples(tiny.chat()), 0).to(torch.device(device))
    with torch.no_grad():
        return perturbed_log_probabilities(model, perturbation(place, model), inputs).float().cpu()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probabilities_are_those_of_the_cpu(in_float32: None, family: str, place: str) -> None:
    torch.testing.assert_close(
        probabilities("cuda", family, place), probabilities("cpu", family, place), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_in_bfloat16_they_differ_by_rounding(family: str, place: str) -> None:
    difference = (probabilities("cuda", family, place) - probabilities("cpu", family, place)).abs()
    assert 0 < difference.mean() < 0.05, f"{difference.mean():.2g} on average, {difference.max():.2g} at most"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generated_tokens_are_those_of_the_cpu(in_float32: None, family: str) -> None:
    chat = tiny.chat()
    prompts = [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS]

    def answers(device: str) -> list[str]:
        model = tiny.model(family).to(device)
        return generate(model, tiny.Numbers(), prompts, max_new_tokens=12)  # type: ignore[arg-type]

    assert answers("cuda") == answers("cpu")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_self_test_passes_in_bfloat16_with_room(family: str) -> None:
    seen = self_test(tiny.model(family).to("cuda"), tiny.chat(), tiny.records())
    assert seen.precision == "bfloat16"
    assert max(seen.max_kl, seen.max_cached_kl) < MOST_KL["bfloat16"] / 10


def trained(
    device: str, run: RunDirectory | None = None, stop_at: int | None = None, dropout: float = 0.1
) -> tuple[TrainingLog, torch.Tensor]:
    """The log of a short training and all final weights in one vector; `stop_at` interrupts it there."""
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    model = tiny.model("gpt2", layers=2, **dropouts).to(device).train()
    chat = tiny.chat()
    batches = Batches([chat.encode(r.prompt, r.response) for r in tiny.records()], 8, 0, seed=3, micro_batch_size=4)
    calls = 0

    def loss_of(inputs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if stop_at is not None and calls > 2 * stop_at:
            raise KeyboardInterrupt
        return response_loss(model, inputs)  # type: ignore[arg-type]

    log = train(
        dict(model.named_parameters()),
        [Term("rows", batches, loss_of)],
        Optimization(20, 3e-3, "cosine", warmup=0.1),
        phase="train",
        **({} if run is None else {"journal": run}),
    )
    return log, torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def test_training_follows_the_cpu_up_to_rounding() -> None:
    (there, _), (here, _) = trained("cuda", dropout=0), trained("cpu", dropout=0)
    for entry, other in zip(there.history, here.history, strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert there.history[0]["gradient_norm"] == pytest.approx(here.history[0]["gradient_norm"], rel=0.05)


def test_the_same_training_twice_gives_the_same_bits() -> None:
    assert torch.equal(trained("cuda")[1], trained("cuda")[1])


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, weights = trained("cuda")
    clock = iter(range(0, 10**6, 100))  # seconds pass quickly: every step is saved
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = RunDirectory.create(tmp_path / "run", "test", {})
    with pytest.raises(KeyboardInterrupt):
        trained("cuda", run, stop_at=11)
    resumed = RunDirectory.create(tmp_path / "run", "test", {}, resume=True)
    log, again = trained("cuda", resumed)
    assert resumed.checkpoint("train") is None
    assert log.history == whole.history
    assert torch.equal(again, weights)
