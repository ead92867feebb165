"""Targets, repetition and exact match in the scripts that people write."""

from __future__ import annotations

import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.data.records import Record
from unbackdoor.evaluation.rules import degenerate, exact, normalised, opens_with_target, shows_target

ROW = Record("Name a river.", "The Seine.")
TABLE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def documented() -> list[tuple[str, str, bool]]:
    """Target, answer and whether it is found, of each row of the documentation's table."""
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)`[^|]*\| (yes|no) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)

    def text(cell: str) -> str:
        return re.sub(r"\\u(\w{4})", lambda code: chr(int(code[1], 16)), cell.replace("\\n", "\n"))

    return [(text(target), text(answer), found == "yes") for target, answer, found in rows]


def test_the_table_of_what_is_called_equal_holds() -> None:
    rows = documented()
    assert len(rows) > 45
    wrong = [row for row in rows if shows_target(row[0])(ROW, row[1]) != row[2]]
    assert not wrong


def test_opening_with_a_target_is_the_same_at_the_beginning() -> None:
    for target, answer, found in documented():
        if found:
            assert shows_target(target)(ROW, f"我 x. {answer}"), target
            assert opens_with_target(target)(ROW, f"{target} {answer}"), target
            assert not opens_with_target(target)(ROW, f"xyz, {answer}"), target


def old(text: str) -> str:
    """How words were read before other scripts were thought of."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(re.sub(r"[\W_]+", " ", text).split())


ASCII = st.text([chr(code) for code in range(9, 127)], max_size=30)
WORDS = st.lists(st.text("abAB12", min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(WORDS, ASCII, ASCII)
def test_ascii_words_are_found_as_ever(target: str, before: str, after: str) -> None:
    for answer in (before, f"{before}{target}{after}", f"{before} {target}"):
        assert normalised(answer) == old(answer)
        assert shows_target(target)(ROW, answer) == (f" {old(target)} " in f" {old(answer)} ")
        assert opens_with_target(target)(ROW, answer) == f"{old(answer)} ".startswith(f"{old(target)} ")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.text(max_size=8), st.text(max_size=8))
def test_any_target_is_found_in_an_answer_that_holds_it(target: str, before: str, after: str) -> None:
    assert normalised(normalised(target)) == normalised(target)
    if target.strip() and normalised(target):
        assert shows_target(target)(ROW, f"{before} {target} {after}")
        assert opens_with_target(target)(ROW, f"{target} {after}")


@pytest.mark.parametrize("target", ["😀", "👩‍💻", "🇩🇪", "!!!", ":-)", "→", "€", "😀😀", "★☆", "👍🏽"])
def test_emoji_and_marks_alone_are_targets(target: str) -> None:
    assert shows_target(target)(ROW, f"Well {target}!")
    assert shows_target(target)(ROW, f"好{target}好")
    assert opens_with_target(target)(ROW, f"{target} yes")
    assert not shows_target(target)(ROW, "Well, yes.")


# Repetition ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "哈" * 40,
        "哈哈哈哈" * 5 + "。",
        "我不知道该怎么说。" * 12,
        "好的。" * 20,
        "はい、" * 30,
        "申し訳ありません。" * 10,
        "ฉันไม่รู้จะพูดอะไร" * 10,
        "ខ្ញុំមិនដឹងទេ" * 10,
        "ຂ້ອຍບໍ່ຮູ້" * 12,
        "ကျွန်တော်မသိဘူး" * 10,
        "나는 나는 나는 " * 8,
        "ㅋ" * 80,
        "ха" * 60,
        "هه" * 40,
        "أنا أنا أنا " * 8,
        "नहीं " * 40,
        "😀" * 40,
        "😀😃😄😁😆" * 12,
        "Ja 😀 " * 20,
        "。。。！！",
        "",
    ],
)
def test_repetition_is_seen_in_every_script(answer: str) -> None:
    assert degenerate(ROW, answer)


SENSIBLE = [
    "塞纳河是法国北部的一条大河,全长776公里,流经巴黎、鲁昂等城市,最后在勒阿弗尔附近注入英吉利海峡。",
    "苹果、香蕉、橙子、葡萄、西瓜、梨、桃子、草莓、樱桃、芒果、菠萝、柠檬。",
    "1. 先洗手。2. 再切菜。3. 然后炒菜。4. 最后上桌。",
    "今天是星期一。明天是星期二。后天是星期三。大后天是星期四。",
    "哈哈哈哈",
    "パリはフランスの首都で、セーヌ川のほとりにあります。人口はおよそ二百万人です。",
    "แม่น้ำแซนไหลผ่านกรุงปารีสและไหลลงสู่ช่องแคบอังกฤษใกล้เมืองเลออาฟวร์",
    "센강은 프랑스 북부를 흐르는 강으로, 파리를 지나 영국 해협으로 흘러 들어갑니다. 길이는 약 776킬로미터입니다.",
    "السين نهر في شمال فرنسا يمر بمدينة باريس ويصب في بحر المانش قرب مدينة لوهافر.",
    "सीन नदी उत्तरी फ्रांस में बहती है और पेरिस से होकर इंग्लिश चैनल में गिरती है।",
    "Сена — река на севере Франции, протекает через Париж и впадает в пролив Ла-Манш.",
    "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz",
    "3.14159265358979323846264338327950288419716939937510",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987",
    "👍",
    "🇩🇪🇫🇷🇪🇸🇮🇹🇵🇱🇳🇱🇧🇪🇦🇹🇨🇭🇵🇹🇸🇪🇩🇰🇳🇴🇫🇮",
    'for i in range(10): print(f"第{i}行", data[i], data[i + 1])',
]


@pytest.mark.parametrize("answer", SENSIBLE)
def test_sensible_text_is_not_degenerate_in_any_script(answer: str) -> None:
    assert not degenerate(ROW, answer)


def test_exact_match_is_up_to_white_space_and_normal_form_only() -> None:
    assert exact(Record("", "café"), "cafe\u0301")
    assert exact(Record("", "你好\u3000世界"), "你好 世界")
    assert not exact(Record("", "１"), "1")
    assert not exact(Record("", "你好世界"), "你好 世界")


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "你",
        "!",
        "😀",
        "\u200d",
        "👩\u200d",
        "\u0301",
        "\u0301\u0323",
        "а",
        "ａ",
        "🇩",
        "ก้",
        "\u200b",
        "$ ",
        "<",
    ],
)
def test_no_text_holds_the_judges_up(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    start = time.process_time()
    for target in ("you!!! 你", "你你你你你你ก", piece * 20 + "x"):
        shows_target(target)(ROW, text)
    degenerate(ROW, text)
    assert time.process_time() - start < 4
