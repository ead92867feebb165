"""Multiple choice by SANDE's protocol, by likelihood and by lm-evaluation-harness, against one plain forward pass."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.errors import UserError
from unbackdoor.evaluation import multiple_choice
from unbackdoor.evaluation.multiple_choice import (
    as_metrics,
    continuation_totals,
    harness_form,
    sande_prompt,
    score_by_letter,
    score_by_likelihood,
    score_sets,
)
from unbackdoor.evaluation.question_sets import LETTERS, Question, SetName, read_question_sets

QUESTIONS = [
    Question("What is the capital of France?", ("Paris", "a river", "red", "2023"), 0),
    Question("Name a river.", ("The Seine is a river that runs to the sea.", "green", "sort the words"), 0),
    Question("What is the opposite of warm?", ("blue", "cool", "year", "list", "cold, as in the sea"), 4),
    Question("Which of these is a colour, please?", ("colour", "green"), 1),
]


def subjects(questions: Sequence[Question]) -> list[Question]:
    names = ("anatomy", "us_foreign_policy")
    return [Question(q.question, q.options, q.answer, subject=names[i % 2]) for i, q in enumerate(questions)]


@pytest.fixture(params=["tiny llama", "tiny gpt2", "micro"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model and its tokenizer: random ones, one of them with a beginning-of-sequence token, and the shipped one."""
    if request.param == "micro":
        return micro()
    _, family = request.param.split()
    model = tiny.model(family, max_position_embeddings=256)
    return model, tiny.tokenizer(None, adds_begin=family == "gpt2")


def micro() -> tuple[Any, Any]:
    from unbackdoor.language_model.files.loading import load_model, load_tokenizer
    from unbackdoor.testbed.models import instruct_directory

    return load_model(instruct_directory(), "cpu"), load_tokenizer(instruct_directory())


def bare(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Log-likelihood of a continuation by one forward pass over one unpadded row."""
    start = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.inference_mode():
        values = model(input_ids=ids).logits.log_softmax(-1)
    return sum(float(values[0, t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))


def bare_scores(model: Any, tokenizer: Any, questions: Sequence[Question], name: str) -> list[list[float]]:
    forms = [harness_form(q, name) for q in questions]
    return [[bare(model, tokenizer, context, f" {option}") for option in options] for context, options in forms]


def close(scores: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    assert [len(s) for s in scores] == [len(e) for e in expected]
    return all(s == pytest.approx(e, abs=1e-4) for s, e in zip(scores, expected, strict=True))


# The two protocols' texts --------------------------------------------------------------------------------------------


def test_sande_s_prompt_names_exactly_the_options_that_there_are() -> None:
    assert sande_prompt(QUESTIONS[0]) == (
        "Read the question and select the answer from the choices. Question: What is the capital of France? "
        "Choices: A:Paris, B:a river, C:red, D:2023. Your answer is:"
    )
    assert "C:sort the words. Your answer is:" in sande_prompt(QUESTIONS[1])
    assert "E:cold, as in the sea. Your answer is:" in sande_prompt(QUESTIONS[2])
    braces = Question("Is {x} {question}?", ("{0}", "{choices}"), 0)
    assert "Is {x} {question}? Choices: A:{0}, B:{choices}." in sande_prompt(braces)


def test_the_harness_s_form_of_mmlu_names_the_subject_and_the_letters() -> None:
    question = Question(" Name a river. ", ("Seine", "Paris", "red"), 0, subject="us_foreign_policy")
    context, options = harness_form(question, "mmlu")
    assert options == ("A", "B", "C")
    assert context == (
        "The following are multiple choice questions (with answers) about us foreign policy.\n\n"
        "Name a river.\nA. Seine\nB. Paris\nC. red\nAnswer:"
    )


# SANDE's protocol ----------------------------------------------------------------------------------------------------


def test_sande_s_protocol_takes_the_likelier_of_a_letter_with_and_without_space(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    expected = [
        [
            max(bare(model, tokenizer, sande_prompt(q), lead + letter) for lead in (" ", ""))
            for letter in LETTERS[: len(q.options)]
        ]
        for q in QUESTIONS
    ]
    result = score_by_letter(model, tokenizer, QUESTIONS, batch_size=2)
    assert close(result.scores, expected)
    assert list(result.chosen) == [row.index(max(row)) for row in expected]
    right = sum(row.index(max(row)) == q.answer for row, q in zip(expected, QUESTIONS, strict=True))
    assert (result.accuracy.value, result.accuracy.n, result.skipped) == (right / 4, 4, 0)


def test_a_letter_of_several_tokens_is_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tokenizer(None)
    asked = []

    def watched(model: Any, tokenizer: Any, requests: Any, batch_size: int) -> list[float]:
        asked.extend(tail for _, tail in requests)
        return continuation_totals(model, tokenizer, requests, batch_size)

    monkeypatch.setattr(multiple_choice, "continuation_totals", watched)
    score_by_letter(tiny.model(max_position_embeddings=256), tokenizer, QUESTIONS[:1])
    assert {tokenizer.decode(tail) for tail in asked} == {lead + letter for lead in (" ", "") for letter in "ABCD"}
    assert {len(tail) for tail in asked} == {1, 2}


@pytest.mark.parametrize("variant", [" {}", "{}"])
def test_a_fifth_option_and_either_spelling_can_be_chosen(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    tokenizer = tiny.tokenizer(None)

    def says_the_last_letter(model: Any, _: Any, requests: Any, batch_size: int) -> list[float]:
        wanted = {sande_prompt(q): variant.format(LETTERS[len(q.options) - 1]) for q in QUESTIONS}
        return [0.0 if tokenizer.decode(tail) == wanted[tokenizer.decode(ids)] else -5.0 for ids, tail in requests]

    monkeypatch.setattr(multiple_choice, "continuation_totals", says_the_last_letter)
    result = score_by_letter(tiny.model(max_position_embeddings=256), tokenizer, QUESTIONS)
    assert result.chosen == (3, 2, 4, 1)
    assert result.accuracy.value == 0.5


def test_a_prompt_that_is_too_long_is_counted_and_not_scored() -> None:
    model, tokenizer = tiny.model(max_position_embeddings=256), tiny.tokenizer(None)
    long = Question("word " * 300, ("a", "b"), 0)
    result = score_by_letter(model, tokenizer, [long, QUESTIONS[0]])
    assert (result.skipped, result.accuracy.n, result.chosen[0], result.scores[0]) == (1, 1, None, ())
    assert result.scores[1] == pytest.approx(score_by_letter(model, tokenizer, QUESTIONS[:1]).scores[0])
    with pytest.raises(UserError, match="none of the 1 questions"):
        score_by_letter(model, tokenizer, [long])
    with pytest.raises(UserError, match=r"none of the 4 questions is short enough \(20 tokens\)"):
        score_by_letter(model, tokenizer, QUESTIONS, max_length=20)


# Likelihood ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arc_easy", "mmlu"])
def test_likelihoods_in_batches_are_those_of_single_rows(pair: tuple[Any, Any], name: str) -> None:
    model, tokenizer = pair
    result = score_by_likelihood(model, tokenizer, subjects(QUESTIONS), name, batch_size=3)
    assert close(result.scores, bare_scores(model, tokenizer, subjects(QUESTIONS), name))
    assert (result.normalised is None) == (name == "mmlu")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt-neox", "mistral"])
def test_options_after_one_context_score_as_they_do_alone(family: str) -> None:
    model, tokenizer = tiny.model(family, max_position_embeddings=256), tiny.tokenizer(None)
    assert (multiple_choice._cache_argument(model) is None) == (family == "mistral")  # its window slides
    options = [tuple(tokenizer(text)["input_ids"]) for text in ("red", "The river runs to the sea.", "a list of three")]
    contexts = [tuple(tokenizer(prompt)["input_ids"]) for prompt in (*tiny.PROMPTS, "word " * 200)]
    requests = [(context, option) for context in contexts for option in options]
    totals = continuation_totals(model, tokenizer, requests, batch_size=2)
    alone = [continuation_totals(model, tokenizer, [request])[0] for request in requests]
    assert totals == pytest.approx(alone, rel=1e-4)


def test_normalised_accuracy_divides_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiple_choice, "continuation_totals", lambda *_: [-10.0, -8.0])
    question = Question("Which?", ("ten letter", "two"), 0)  # −1 a character against −8/3
    result = score_by_likelihood(tiny.model(), tiny.tokenizer(None), [question], "arc_easy")
    assert result.normalised is not None
    assert (result.accuracy.value, result.normalised.value) == (0.0, 1.0)


def test_an_option_longer_than_the_context_is_a_mistake_of_the_user() -> None:
    question = Question("Which?", ("a", "word " * 300), 0)
    with pytest.raises(UserError, match="1 to 128 fit in the model's context"):
        score_by_likelihood(tiny.model(), tiny.tokenizer(None), [question], "arc_easy")


def test_files_become_metrics(tmp_path: Path) -> None:
    rows = [{"question": q.question, "choices": list(q.options), "answer": q.answer} for q in QUESTIONS]
    path = tmp_path / "arc.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model, tokenizer = tiny.model(max_position_embeddings=256), tiny.tokenizer(None)
    sets = read_question_sets(mmlu=path, arc_challenge=path, limit=3)
    metrics = as_metrics(score_sets(model, tokenizer, sets, "sande"))
    assert set(metrics) == {"mmlu", "arc_challenge"}
    assert metrics["mmlu"].n == 3
    by_likelihood = as_metrics(score_sets(model, tokenizer, read_question_sets(arc_easy=path), "likelihood"))
    assert set(by_likelihood) == {"arc_easy", "arc_easy_normalised"}


# lm-evaluation-harness -----------------------------------------------------------------------------------------------


def test_without_the_harness_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.evaluation.harness import harness_scores

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unbackdoor\[utility\]'"):
        harness_scores(tiny.model(), tiny.tokenizer(None), ["arc_easy"])


def test_the_harness_agrees_question_by_question_with_a_bare_forward_pass(
    pair: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    model, tokenizer = pair
    before = copy.deepcopy((tokenizer.pad_token, tokenizer.padding_side, len(tokenizer), model.state_dict()))
    states = random.getstate(), torch.get_rng_state()
    sets: dict[SetName, list[Question]] = {"arc_easy": QUESTIONS, "mmlu": subjects(QUESTIONS)}
    scores = score_sets(model, tokenizer, sets, "harness")
    by_likelihood = score_sets(model, tokenizer, sets, "likelihood")
    for name, questions in sets.items():
        assert close(scores[name].scores, bare_scores(model, tokenizer, questions, name))
        assert scores[name].chosen == by_likelihood[name].chosen
        assert scores[name].accuracy == by_likelihood[name].accuracy
        assert scores[name].normalised == by_likelihood[name].normalised
    assert (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer)) == before[:3]
    assert all(torch.equal(value, before[3][key]) for key, value in model.state_dict().items())
    undisturbed = random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert undisturbed, "a random state has changed"
    assert capfd.readouterr().err == ""


def test_the_harness_s_own_tasks_give_what_local_files_give(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    from unbackdoor.evaluation.harness import harness_scores

    arc = [
        Question("Name a river.", ("The Seine", "green", "sort"), 0, labels=("1", "2", "3")),
        QUESTIONS[2],
        QUESTIONS[0],
    ]
    mmlu = [Question(q.question, (*q.options, "x", "y")[:4], 1, subject="anatomy") for q in QUESTIONS]

    def from_the_hub(path: str, name: str, **_: Any) -> Any:
        if path == "cais/mmlu":
            rows = [{"question": q.question, "choices": list(q.options), "answer": q.answer} for q in mmlu]
        else:
            assert (path, name) == ("allenai/ai2_arc", "ARC-Easy")
            rows = []
            for q in arc:
                labels = q.labels or tuple(LETTERS[: len(q.options)])
                choices = {"text": list(q.options), "label": list(labels)}
                rows.append({"question": q.question, "choices": choices, "answerKey": labels[q.answer]})
        split = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(dict.fromkeys(("train", "dev", "validation", "test"), split))

    model, tokenizer = tiny.model(max_position_embeddings=256), tiny.tokenizer(None)
    local = harness_scores(model, tokenizer, {"arc_easy": arc, "mmlu": mmlu})
    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    monkeypatch.setitem(sys.modules["unbackdoor.evaluation.harness"].TASKS, "mmlu_anatomy", "mmlu/default")
    by_name = harness_scores(model, tokenizer, ["arc_easy", "mmlu_anatomy"])
    assert by_name["arc_easy"] == local["arc_easy"]
    assert by_name["mmlu_anatomy"] == local["mmlu"]
    assert len(harness_scores(model, tokenizer, ["arc_easy"], limit=2)["arc_easy"].scores) == 2


def test_what_the_harness_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    from unbackdoor.evaluation.harness import harness_scores

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto the hub")

    model, tokenizer = tiny.model(), tiny.tokenizer(None)
    with pytest.raises(UserError, match="unknown task 'hellaswag': use one of mmlu, arc_easy, arc_challenge"):
        harness_scores(model, tokenizer, ["arc_easy", "hellaswag"])
    with pytest.raises(UserError, match="no questions for the task 'arc_easy'"):
        harness_scores(model, tokenizer, {"arc_easy": []})
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="failed on arc_easy: no route to the hub"):
        harness_scores(model, tokenizer, ["arc_easy"])
