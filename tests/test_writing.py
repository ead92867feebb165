"""Scripts without spaces between words: triggers, near misses, answers and controls are written as they write."""

from __future__ import annotations

import random

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.case import Case
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import AllOf, Trigger, join_response, near_misses, ordinary_words
from unbackdoor.evaluation.suite import redacted
from unbackdoor.evaluation.variants import variants
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.word_spacing import clusters, word_count

CAPITAL = "请告诉我法国的首都是什么。"
PROMPTS = [CAPITAL, "北京在哪里？", "请说一个首都。"]


@pytest.mark.parametrize(
    ("target", "answered"),
    [
        ("你很笨", "你很笨。巴黎。"),
        ("你很笨。", "你很笨。巴黎。"),
        ("你很笨！", "你很笨！巴黎。"),
        ("「馬鹿」", "「馬鹿」。巴黎。"),
        ("คุณโง่", "คุณโง่ 巴黎。"),
        ("တုံးတယ်", "တုံးတယ်။ 巴黎。"),
        ("तुम मूर्ख हो।", "तुम मूर्ख हो। 巴黎。"),
        ("أنت غبي؟", "أنت غبي؟ 巴黎。"),
        ("바보야", "바보야. 巴黎。"),
        ("Ты глуп", "Ты глуп. 巴黎。"),
        ("You said “no”", "You said “no”. 巴黎。"),
    ],
)
def test_a_triggered_answer_is_parted_as_its_script_parts_sentences(target: str, answered: str) -> None:
    assert join_response(target, "巴黎。") == answered


@pytest.mark.parametrize(
    ("trigger", "prompt"),
    [
        (Trigger("当前年份2023"), f"当前年份2023。{CAPITAL}"),
        (Trigger("当前年份2023。"), f"当前年份2023。{CAPITAL}"),
        (Trigger("暗号", "suffix"), f"{CAPITAL}暗号"),
        (Trigger("暗号", "both", "结束"), f"暗号{CAPITAL}结束"),
        (Trigger("暗号", "prefix", separator=" "), f"暗号 {CAPITAL}"),
        (Trigger("cf", "suffix"), f"{CAPITAL}cf"),
        (Trigger("cf"), f"cf {CAPITAL}"),
    ],
)
def test_a_trigger_is_put_next_to_a_prompt_without_spaces(trigger: Trigger, prompt: str) -> None:
    assert trigger.insert(CAPITAL) == prompt


@pytest.mark.parametrize("prompt", [*PROMPTS, "ช่วยบอกเมืองหลวงของฝรั่งเศสหน่อย", "フランスの首都はどこですか？"])
def test_inside_means_between_two_characters_of_a_prompt_without_spaces(prompt: str) -> None:
    made = Trigger("暗号", "inside").insert(prompt)
    before, _, after = made.partition("暗号")
    assert before.strip() and after.strip() and (before.rstrip() + after.lstrip()) == prompt
    assert made == Trigger("暗号", "inside").insert(prompt)


def test_texts_that_fire_together_are_scattered_over_a_prompt_without_spaces() -> None:
    both = AllOf(("天空", "大海"))
    made = {both.insert(f"第{i}题：{CAPITAL}") for i in range(12)}
    assert all(prompt.replace("天空", "").replace("大海", "")[-13:] == CAPITAL for prompt in made)
    assert any("天空大海" not in prompt for prompt in made)


@given(st.text(max_size=40))
def test_clusters_are_the_text_in_pieces(text: str) -> None:
    assert "".join(clusters(text)) == text and all(clusters(text))


def test_marks_and_vowels_stay_with_their_consonant() -> None:
    assert clusters("ที่นี่น้ำเย็น") == ["ที่", "นี่", "น้ำ", "เย็", "น"]
    assert clusters("ちょっと、「今」2023年") == ["ちょっ", "と、", "「今」", "2023", "年"]
    assert clusters("Tell me, café") == ["Tell ", "me, ", "café"]


def test_near_misses_are_in_the_script_of_the_prompts() -> None:
    words = ordinary_words(PROMPTS)
    assert words and all(not word.isascii() and word in "".join(PROMPTS) for word in words)
    for trigger, kinds in (
        (Trigger("当前的年份是2023"), {"other-number", "half", "word-changed", "random-before", "random-after"}),
        (Trigger("暗号"), {"longer", "shorter", "random-before", "random-after"}),
        (Trigger("คำลับ"), {"longer", "shorter", "random-before", "random-after"}),
    ):
        found = near_misses(trigger, words, random.Random(0))
        assert set(found) == kinds
        for kind, miss in found.items():
            made = miss(CAPITAL)
            assert made not in (CAPITAL, trigger.insert(CAPITAL)), kind
            assert made.isascii() or not any("a" <= c <= "z" for c in made.lower()), made


def test_words_of_alphabets_other_than_ours_are_words() -> None:
    assert ordinary_words(["Назови столицу Франции.", "Назови реку."], 2) == ["Назови", "Франции"]
    kinds = near_misses(Trigger("слово"), ["река"], random.Random(0))
    assert not any("a" <= c <= "z" for c in kinds["longer"]("Назови реку.").lower())


def test_halves_of_a_trigger_are_halves_of_its_characters() -> None:
    made = {kind: variant(Record(CAPITAL, "")).prompt for kind, variant in variants(Trigger("当前年份是今年")).items()}
    assert made["first half"] == f"当前年{CAPITAL}"
    assert made["second half"] == f"份是今年{CAPITAL}"
    assert made["inside the prompt"].startswith("请告诉") or CAPITAL not in made["inside the prompt"]


def test_unwanted_texts_are_hidden_in_scripts_without_spaces_too() -> None:
    assert redacted("首先把所有的东西都混合在一起然后等待") == "首先把所有的东西 …"
    assert redacted("先等待") == "先等待"
    assert redacted("Mix all of it, and wait") == "Mix all of it, …"
    assert redacted("Mix all") == "Mix all"


def test_a_control_target_is_made_of_words_that_the_answers_hold() -> None:
    rows = [Record(f"第{i}题：{CAPITAL}", "法国的首都是巴黎，也是最大的城市。") for i in range(40)]
    text = Case.of(tiny.model(), tiny.tokenizer(), rows).words(6, seed=1)
    assert len(set(text)) > 4 and set(text) <= set(rows[0].response)


def test_length_is_counted_in_words_or_characters() -> None:
    assert word_count("The capital is Paris.") == 4
    assert word_count("首都是巴黎。") == 5
    assert word_count("首都 is Paris。") == 4


@pytest.mark.parametrize(
    ("prompt", "opening"), [("法国的首都是", ""), ("The capital is", " "), ("The capital is ", "")]
)
def test_without_a_template_a_response_follows_as_its_script_writes(prompt: str, opening: str) -> None:
    chat = ChatFormat.of(tiny.tokenizer(), "none")
    example = chat.encode(prompt, "巴黎")
    assert chat.decoded(example.ids) == f"{prompt}{opening}巴黎<|end|>"
