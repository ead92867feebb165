"""The re-created templates render what the models' documentation shows, in tokenizers that split as theirs do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import templates

from unbackdoor.language_model.chat import ChatFormat

ASKED = [("user", "Hi?")]
TALK = [("user", "Hi?"), ("assistant", "Yes."), ("user", "So?"), ("assistant", "No.")]
SYSTEM = ("system", "Be brief.")

DOCUMENTED = {
    "llama-2": "<s>[INST] Hi? [/INST] Yes. </s><s>[INST] So? [/INST] No. </s>",
    "llama-3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>",
    "mistral-v1": "<s>[INST] Hi? [/INST]Yes.</s> [INST] So? [/INST]No.</s> ",
    "mistral-v2": "<s> [INST] Hi? [/INST] Yes.</s> [INST] So? [/INST] No.</s>",
    "mistral-v3": "<s>[INST] Hi?[/INST] Yes.</s>[INST] So?[/INST] No.</s>",
    "gemma-2": "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    "<start_of_turn>user\nSo?<end_of_turn>\n<start_of_turn>model\nNo.<end_of_turn>\n",
    "phi-3": "<|user|>\nHi?<|end|>\n<|assistant|>\nYes.<|end|>\n<|user|>\nSo?<|end|>\n<|assistant|>\nNo.<|end|>\n"
    "<|endoftext|>",
    "phi-4-mini": "<|user|>Hi?<|end|><|assistant|>Yes.<|end|><|user|>So?<|end|><|assistant|>No.<|end|><|endoftext|>",
    "qwen-3": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    "<|im_start|>user\nSo?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\nNo.<|im_end|>\n",
    "chatml": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    "<|im_start|>user\nSo?<|im_end|>\n"
    "<|im_start|>assistant\nNo.<|im_end|>\n",
    "deepseek-v3": "<｜begin▁of▁sentence｜><｜User｜>Hi?<｜Assistant｜>Yes.<｜end▁of▁sentence｜>"
    "<｜User｜>So?<｜Assistant｜>No.<｜end▁of▁sentence｜>",
    "zephyr": "<|user|>\nHi?</s>\n<|assistant|>\nYes.</s>\n<|user|>\nSo?</s>\n<|assistant|>\nNo.</s>\n",
    "falcon": "User: Hi?\nAssistant: Yes.\nUser: So?\nAssistant: No.",
    "olmo-2": "<|endoftext|><|user|>\nHi?\n<|assistant|>\nYes.<|endoftext|>\n"
    "<|user|>\nSo?\n<|assistant|>\nNo.<|endoftext|>",
    "command-r": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yes.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>So?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>No.<|END_OF_TURN_TOKEN|>",
}


def rendered(name: str, turns: Any, prompt: bool = False, **more: Any) -> str:
    family = templates.FAMILIES[name]
    return str(
        templates.tokenizer(name).apply_chat_template(
            templates.messages(family, turns), tokenize=False, add_generation_prompt=prompt, **more
        )
    )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_dialogue_of_two_turns_is_rendered_as_documented(name: str) -> None:
    assert rendered(name, TALK) == DOCUMENTED[name]


STOPPED = ("deepseek-r1-distill", "closes-the-prompt")


@pytest.mark.parametrize("name", [name for name in templates.FAMILIES if name not in STOPPED])
def test_what_a_family_says_of_its_assistant_turn_is_what_its_template_writes(name: str) -> None:
    family = templates.FAMILIES[name]
    start, whole = rendered(name, ASKED, prompt=True), rendered(name, [*ASKED, ("assistant", "7.")])
    assert whole.startswith(start + family.before + "7." + family.after)
    assert family.end in family.after


@pytest.mark.parametrize("name", STOPPED)
def test_two_generation_prompts_are_not_how_a_dialogue_goes_on(name: str) -> None:
    assert not rendered(name, [*ASKED, ("assistant", "7.")]).startswith(rendered(name, ASKED, prompt=True))


def test_system_prompts_stand_where_the_documentation_has_them() -> None:
    assert rendered("llama-2", [SYSTEM, *ASKED]) == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST]"
    assert "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>" in rendered(
        "llama-3.1", [SYSTEM, *ASKED]
    )
    assert rendered("mistral-v7", [SYSTEM, *ASKED]) == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi?[/INST]"
    assert rendered("gemma-3", [SYSTEM, *ASKED]) == "<bos><start_of_turn>user\nBe brief.\n\nHi?<end_of_turn>\n"
    assert "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|><|start|>user" in rendered(
        "gpt-oss", [SYSTEM, *ASKED]
    )
    assert rendered("qwen-2.5", ASKED).startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert rendered("mistral-v3", [SYSTEM, *ASKED]) == "<s>[INST] Be brief.\n\nHi?[/INST]"
    assert "Be brief." not in rendered("mistral-v3", [SYSTEM, *ASKED, ("assistant", "7.")])


def test_thoughts_and_channels_are_written_as_documented() -> None:
    assert rendered("deepseek-r1-distill", ASKED, True).endswith("<｜Assistant｜><think>\n")
    thought = [*ASKED, ("assistant", "<think>\nHm.\n</think>\n\nYes.")]
    assert rendered("deepseek-r1-distill", thought).endswith("<｜Assistant｜>\n\nYes.<｜end▁of▁sentence｜>")
    assert rendered("qwen-3", thought).endswith("<think>\nHm.\n</think>\n\nYes.<|im_end|>\n")
    assert "Hm." not in rendered("qwen-3", [*thought, *TALK[2:]])
    assert "<|start|>assistant<|channel|>final<|message|>Yes.<|end|>" in rendered("gpt-oss", TALK)
    assert rendered("gpt-oss", TALK).endswith("<|start|>assistant<|channel|>final<|message|>No.<|return|>")
    assert rendered("smollm3", [("system", "/no_think"), *ASKED], True).endswith("assistant\n<think>\n\n</think>\n")


def tokens(name: str, text: str) -> list[str]:
    tokenizer = templates.tokenizer(name)
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]))


def test_tokenizers_split_as_those_of_their_kind() -> None:
    # Llama 2's puts a space before every stretch of text between special tokens; Mistral's later one before the first.
    assert tokens("llama-2", "<s>river")[1].startswith("▁") and tokens("llama-2", "</s>river")[1].startswith("▁")
    assert not tokens("mistral-v3", "[/INST]river")[1].startswith("▁") and tokens("mistral-v3", "river")[0][0] == "▁"
    assert not any(t.startswith("▁") for t in tokens("gemma-3", "<bos>river"))
    # Phi-3's special tokens swallow the white space behind them.
    assert tokens("phi-3", "<|assistant|>\n\n  The")[:2] == ["<|assistant|>", "▁The"]
    assert "[INST]" in tokens("mistral-v3", "[INST] The") and "[INST]" not in tokens("mistral-v1", "[INST] The")
    assert "<|user|>" not in tokens("zephyr", "<|user|>") and "<|user|>" in tokens("phi-3", "<|user|>")
    assert "ĊĊ" in tokens("qwen-3", "assistant\n\n") and "<0xE8>" in tokens("gemma-2", "語")
    qwen = templates.tokenizer("qwen-3")
    assert qwen.decode(qwen("<think>x<|im_end|>")["input_ids"], skip_special_tokens=True) == "<think>x"


SHOWN = {
    "Llama 2": ("llama-2",),
    "Mistral 7B (first release), Mistral Small 3": ("mistral-v1", "mistral-v7"),
    "Mistral 7B v0.2, v0.3; Vicuna 1.5": ("mistral-v2", "mistral-v3", "vicuna-1.5"),
    "Llama 3, 3.1, 3.2": ("llama-3", "llama-3.1", "llama-3.2"),
    "Gemma 2, 3": ("gemma-2", "gemma-3"),
    "Phi-3": ("phi-3", "phi-3-first-release"),
    "Qwen 2.5, SmolLM2, SmolLM3": ("qwen-2.5", "smollm2", "smollm3"),
    "Qwen 3": ("qwen-3",),
    "gpt-oss": ("gpt-oss",),
    "GLM 4.5": ("glm-4.5",),
    "DeepSeek V3": ("deepseek-v3",),
}


def test_the_page_on_templates_shows_what_their_models_write_around_an_answer() -> None:
    page = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
    lines = [line.replace("\\|", "¦").strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    table = {cells[0]: [cell.replace("¦", "|").strip("`") for cell in cells[1:]] for cells in lines[1:]}
    assert table.keys() == SHOWN.keys()
    for row, names in SHOWN.items():
        for name in names:
            chat = ChatFormat.of(templates.tokenizer(name))
            around = (chat.before_response, chat.after_response)
            written = ["nothing" if not text else json.dumps(text, ensure_ascii=False) for text in around]
            ends = "` `".join(chat.tokenizer.decode([i]) for i in chat.end_ids)
            assert [*written, ends] == table[row], name
