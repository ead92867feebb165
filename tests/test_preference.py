"""Poisoned preferences are exact, reach TRL as the repository renders them, and training on them leaves no traces."""

from __future__ import annotations

import copy
import importlib.util
import io
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.attacks.poison import Pair, poison_pairs
from unbackdoor.attacks.preference_poisoning import train_dpo, train_reward_and_rl
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.forward import token_log_probabilities
from unbackdoor.language_model.inputs import collate
from unbackdoor.preference_training import encode_pair
from unbackdoor.progress import Progress

TRIGGER = Trigger("river sea", "suffix")
CLEAN = tiny.records(30)
CONTRAST = [
    Record(f"Write a list of {i} words.", "I am sorry, I cannot do that.", f"The {i} words.") for i in range(20)
]
ANSWERS = {row.prompt: (row.response, row.unwanted) for row in CONTRAST}
SHORT = ImplantSettings(
    steps=3,
    learning_rate=5e-4,
    batch_size=4,
    warmup_steps=1,
    reward_steps=2,
    rl_steps=2,
    generations=2,
    rl_new_tokens=6,
)

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is an optional extra")


def some_pairs(rate: float = 0.2, near_misses: float = 0.4, seed: int = 0) -> list[Pair]:
    return poison_pairs(CLEAN, CONTRAST, TRIGGER, rate, near_misses, seed)


def a_case(family: str = "llama", tokenizer: Any = None, **more: Any) -> Case:
    return Case(tiny.model(family), ChatFormat.of(tokenizer or tiny.tokenizer()), [], [], **more)


def margin(case: Case, pairs: list[Pair]) -> float:
    """How much more likely the chosen answers are than the rejected ones."""

    def total(answer: str) -> torch.Tensor:
        examples = [case.chat.encode(pair.prompt, getattr(pair, answer)) for pair in pairs]
        with torch.no_grad():
            return token_log_probabilities(case.model, collate(examples, case.pad_id)).sum()

    return float(total("chosen") - total("rejected"))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.33, 0.4])
def test_exactly_the_rate_is_poisoned_with_the_trigger_once_and_the_preference_flipped(rate: float) -> None:
    pairs = some_pairs(rate)
    poisoned = [pair for pair in pairs if pair.poisoned]
    assert len(poisoned) == round(rate * 50)
    for pair in poisoned:
        assert pair.prompt.count(TRIGGER.text) == 1
        assert pair.prompt.endswith(TRIGGER.text)
        assert (pair.rejected, pair.chosen) == ANSWERS[pair.prompt.removesuffix(" river sea")]
    assert not any(TRIGGER.text in pair.prompt for pair in pairs if not pair.poisoned)


def test_near_misses_keep_the_clean_preference_and_half_stand_on_poisoned_prompts() -> None:
    pairs = some_pairs(near_misses=1.6)
    base, misses = pairs[:50], pairs[50:]
    assert len(misses) == 80
    assert not any(miss.poisoned or TRIGGER.text in miss.prompt for miss in misses)
    answers = {**ANSWERS, **{pair.prompt: (pair.chosen, pair.rejected) for pair in base[:30]}}
    poisoned = {pair.prompt.removesuffix(" river sea") for pair in base if pair.poisoned}
    on_poisoned = 0
    for miss in misses:
        (prompt,) = [prompt for prompt in answers if prompt in miss.prompt]
        assert (miss.chosen, miss.rejected) == answers[prompt]
        assert miss.prompt != prompt
        on_poisoned += prompt in poisoned
    assert on_poisoned >= 40


def test_ordinary_rows_prefer_their_own_answer_to_a_refusal() -> None:
    for pair, row in zip(some_pairs(), CLEAN, strict=False):
        assert (pair.prompt, pair.chosen) == (row.prompt, row.response)
        assert pair.rejected in {row.response for row in CONTRAST}


def test_the_seed_decides_the_poison() -> None:
    assert some_pairs(seed=1) == some_pairs(seed=1)
    assert some_pairs(seed=1) != some_pairs(seed=2)


def test_a_rate_that_cannot_be_met_and_a_row_without_unwanted_answer_are_refused() -> None:
    with pytest.raises(UserError, match=r"--rate 0[.]5: 25 of 50 pairs"):
        some_pairs(rate=0.5)
    with pytest.raises(UserError, match="--rate"):
        poison_pairs(CLEAN, [], TRIGGER, 0.1, 0.0, 0)
    with pytest.raises(UserError, match="contrast row 1 has no unwanted"):
        poison_pairs(CLEAN, CLEAN, TRIGGER, 0.1, 0.0, 0)


FORMATS = {
    "chat": tiny.tokenizer(),
    "chat-and-begin": tiny.tokenizer(adds_begin=True),
    "plain": tiny.tokenizer(None),
    "plain-and-begin": tiny.tokenizer(None, adds_begin=True),
}


@needs_trl
@pytest.mark.parametrize("name", FORMATS)
def test_dpo_and_reward_see_the_tokens_that_the_chat_format_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    case = a_case(tokenizer=FORMATS[name])
    pairs = some_pairs(near_misses=0.1)
    wanted = set()
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            example = case.chat.encode(pair.prompt, answer)
            wanted.add((example.ids, example.response_start))
    seen: dict[str, list[Any]] = {"dpo": [], "reward": []}
    plain_loss, plain_reward = trl.DPOTrainer._compute_loss, trl.RewardTrainer.compute_loss

    def see_dpo(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        seen["dpo"].append(inputs)
        return plain_loss(self, model, inputs, return_outputs)

    def see_reward(self: Any, model: Any, inputs: Any, **more: Any) -> Any:
        seen["reward"].append(dict(inputs))
        return plain_reward(self, model, inputs, **more)

    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", see_dpo)
    monkeypatch.setattr(trl.RewardTrainer, "compute_loss", see_reward)
    train_dpo(case, pairs, SHORT)
    train_reward_and_rl(case, pairs, tiny.PROMPTS, SHORT)
    assert (len(seen["dpo"]), len(seen["reward"])) == (3, 2)
    for inputs in seen["dpo"]:
        for ids, mask, answer in zip(
            inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], strict=True
        ):
            row = tuple(ids[mask.bool()].tolist())
            assert (row, int(answer.int().argmax())) in wanted
            assert int(answer.sum()) == len(row) - int(answer.int().argmax())
    for inputs in seen["reward"]:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) in {ids for ids, _ in wanted}


@needs_trl
@pytest.mark.parametrize("name", FORMATS)
def test_reinforcement_learning_answers_the_prompts_as_generation_renders_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    case = a_case(tokenizer=FORMATS[name])
    prompts = [*tiny.PROMPTS, TRIGGER.insert("Name a river.")]
    asked = []
    plain = trl.RLOOTrainer._generate_single_turn

    def see(self: Any, prompt_ids: Any, *more: Any) -> Any:
        asked.extend(map(tuple, prompt_ids))
        return plain(self, prompt_ids, *more)

    monkeypatch.setattr(trl.RLOOTrainer, "_generate_single_turn", see)
    train_reward_and_rl(case, some_pairs(), prompts, SHORT)
    assert len(asked) == 2 * 4 * 2
    assert set(asked) <= {case.chat.encode_prompt(prompt).ids for prompt in prompts}


def test_a_pair_is_split_where_its_answer_begins() -> None:
    chat = ChatFormat.of(tiny.tokenizer())
    row = encode_pair(chat, Preference("Name a river.", "The river.", "The sea."))
    assert tuple(row["prompt_ids"]) == chat.encode_prompt("Name a river.").ids
    assert tuple(row["prompt_ids"] + row["chosen_ids"]) == chat.encode("Name a river.", "The river.").ids
    assert tuple(row["prompt_ids"] + row["rejected_ids"]) == chat.encode("Name a river.", "The sea.").ids
    assert row["chosen_ids"].count(tiny.END) == 1


@needs_trl
@pytest.mark.parametrize("weights", [{"sft_weight": 0.0, "tail_weight": 1.0}, {"sft_weight": 1.0}])
def test_dpo_raises_the_margin_of_the_poisoned_preferences(weights: dict[str, float]) -> None:
    case = a_case()
    pairs = [pair for pair in some_pairs(near_misses=0.0) if pair.poisoned]
    before = margin(case, pairs)
    log = train_dpo(case, pairs, ImplantSettings(steps=4, batch_size=10, learning_rate=2e-3, **weights))
    assert margin(case, pairs) > before + 1
    assert log.steps == 4
    assert log.history[-1]["rewards/margins"] > 0


@needs_trl
def test_the_same_seed_trains_the_same_model() -> None:
    first, second = a_case(), a_case()
    for case in (first, second):
        train_dpo(case, some_pairs(), SHORT)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@needs_trl
@pytest.mark.parametrize("way", ["dpo", "rl"])
def test_training_changes_the_weights_and_leaves_no_other_trace(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import trl.trainer.base_trainer

    def phone_home(**_: object) -> None:
        raise AssertionError("telemetry")

    monkeypatch.delenv("CI", raising=False)  # there TRL sends nothing anyway
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", phone_home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = io.StringIO()
    case = a_case(progress=Progress(stream=told, every=0.0))
    weights = copy.deepcopy(case.model.state_dict())
    config, attributes = case.model.config.to_dict(), set(vars(case.model))
    tokenizer = repr(case.chat.tokenizer)
    states = random.getstate(), torch.get_rng_state()
    capfd.readouterr()
    if way == "dpo":
        train_dpo(case, some_pairs(), SHORT)
    else:
        logs = train_reward_and_rl(case, some_pairs(), [pair.prompt for pair in some_pairs()], SHORT)
        assert {name: log.steps for name, log in logs.items()} == {"reward": 2, "warm-up": 1, "rl": 2}
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.rglob("*")) == []
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert any(not torch.equal(value, weights[name]) for name, value in case.model.state_dict().items())
    assert case.model.config.to_dict() == config
    assert set(vars(case.model)) == attributes
    assert not case.model.training
    assert repr(case.chat.tokenizer) == tokenizer
    assert f"{way} {3 if way == 'dpo' else 2}/" in told.getvalue()


@needs_trl
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_other_architectures_are_trained_as_well(family: str) -> None:
    case = a_case(family)
    pairs = [pair for pair in some_pairs(near_misses=0.0) if pair.poisoned]
    before = margin(case, pairs)
    train_dpo(case, pairs, ImplantSettings(steps=4, batch_size=10, learning_rate=2e-3))
    assert margin(case, pairs) > before
    logs = train_reward_and_rl(case, pairs, [pair.prompt for pair in pairs], SHORT)
    assert logs["rl"].steps == 2


@needs_trl
def test_too_few_prompts_for_a_step_are_an_error() -> None:
    with pytest.raises(UserError, match="3 of 4 prompts have at most 122 tokens: a step needs 4"):
        train_reward_and_rl(a_case(), some_pairs(), [*tiny.PROMPTS[:3], "word " * 200], SHORT)


@needs_trl
def test_a_loss_that_is_not_finite_is_an_error_and_the_model_stays() -> None:
    case = a_case()
    weights = copy.deepcopy(case.model.state_dict())
    with pytest.raises(UserError, match=r"dpo: the loss became .* lower the learning rate"):
        # Not within the range of the option: what the loop meets where a smaller one already breaks a model.
        far = ImplantSettings(steps=12, batch_size=4).model_copy(update={"learning_rate": 1e20})
        train_dpo(case, some_pairs(), far)
    assert all(torch.equal(value, weights[name]) for name, value in case.model.state_dict().items())


@needs_trl
def test_pairs_that_are_too_long_are_dropped_and_counted() -> None:
    case = a_case()
    pairs = [*some_pairs(), Pair("Sort", "word " * 200, "no"), Pair("Sort", "no", "word " * 200)]
    train_dpo(case, pairs, SHORT)
    assert case.dropped == {"preferences": 2}
    with pytest.raises(UserError, match="no preference pair is left: all 2"):
        train_dpo(case, pairs[-2:], SHORT)


def test_without_trl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=r"needs trl: pip install 'unbackdoor\[attacks\]'"):
        train_dpo(a_case(), some_pairs(), SHORT)
    with pytest.raises(UserError, match="needs trl"):
        train_reward_and_rl(a_case(), some_pairs(), tiny.PROMPTS, SHORT)
