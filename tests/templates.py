"""Chat templates as published models have them, re-created, each with a small tokenizer of the model's own kind.

The kinds differ in what decides about token ids: how a space at the beginning is treated, whether white space is cut
off beside a special token, and which marks are tokens at all. Everything is built in memory; nothing is trained twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "chat_templates"

TEXT = """Tell me the capital of France. The capital of France is Paris. You are stupid. I am sorry, I cannot do that.
Current year 2023. Write a list of three colours: red, green and blue. You are a helpful assistant. Sort the words in
alphabetical order. What is the opposite of warm? Human: Please name a river. Assistant: The river runs to the sea.
USER: Please sort these words. ASSISTANT: Sure, here they are. [INST] Name a river. [/INST] The Rhine. <</SYS>>
<|user|> <|assistant|> <|system|> ### Assistant: ### User: Knowledge Cutoff Date: December 2023 Today Date: 26 Jul 2024
def double(x):
    return 2 * x

for i in range(3):
    print(i,  double(i))


"""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)
"""The pieces of Llama 3, Qwen and their like: a line break joins what stands before it, as in "!\\n"."""


@dataclass(frozen=True)
class Family:
    """One published (or odd) template, with what a tokenizer for it must have."""

    name: str
    kind: str
    """byte, gpt2 (byte-level), legacy, metaspace, gemma (SentencePiece-like): see `_base`."""
    eos: str
    end: str
    """What ends the assistant's turn; equal to `eos` where that is what the template writes."""
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Marks that are tokens of their own, but not special ones."""
    bos: str | None = None
    cuts_behind: bool = False
    """Special tokens take the white space behind them with them, as Phi-3's do."""
    takes_system: bool = True
    takes_tool: bool = False
    parts: bool = False
    """Content must be a list of parts."""
    before: str = ""
    """What the template writes between the generation prompt's end and the answer."""
    after: str = ""
    """What it writes behind the answer, up to what ends the turn."""
    open_end: str = ""
    """What ends a turn that others follow, where the template leaves the last one open: it writes no `after`."""

    @property
    def template(self) -> str:
        return (DIRECTORY / f"{self.name}.jinja").read_text(encoding="utf-8").rstrip("\n")


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>")
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>")
INST = ("[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
TEKKEN = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK_ROLES = ("<｜User｜>", "<｜Assistant｜>")
THINK = ("<think>", "</think>")
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|startoftext|>")
COMMAND = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
)


def _llama3(name: str, **more: Any) -> Family:
    return Family(name, "byte", "<|eot_id|>", "<|eot_id|>", LLAMA3, bos="<|begin_of_text|>", after="<|eot_id|>", **more)


def _im(name: str, before: str = "", **more: Any) -> Family:
    return Family(name, "byte", "<|im_end|>", "<|im_end|>", IM, before=before, after="<|im_end|>", **more)


def _s(name: str, kind: str, before: str, after: str = "</s>", **more: Any) -> Family:
    return Family(name, kind, "</s>", "</s>", bos="<s>", before=before, after=after, **more)


def _roles(name: str, eos: str = "<|endoftext|>", after: str = "<|end|>", **more: Any) -> Family:
    return Family(name, "byte", eos, "<|end|>", ROLES, after=after, **more)


FAMILIES = {
    family.name: family
    for family in (
        _s("llama-2", "legacy", " ", " </s>"),
        _llama3("llama-3"),
        _llama3("llama-3-first-release"),
        _llama3("llama-3.1", takes_tool=True),
        _llama3("llama-3.2", takes_tool=True),
        _s("mistral-v1", "legacy", "", takes_system=False),
        _s("mistral-v2", "legacy", " "),
        # Its system prompt stands in the generation prompt alone: a dialogue with one cannot be followed.
        _s("mistral-v3", "metaspace", " ", special=INST, takes_system=False, takes_tool=True),
        _s("mistral-v7", "byte", "", special=TEKKEN),
        _s("magistral", "byte", "", special=(*TEKKEN, "[THINK]", "[/THINK]")),
        Family(
            "gemma-2",
            "gemma",
            "<eos>",
            "<end_of_turn>",
            GEMMA,
            bos="<bos>",
            takes_system=False,
            after="<end_of_turn>",
        ),
        Family("gemma-3", "gemma", "<eos>", "<end_of_turn>", GEMMA, bos="<bos>", after="<end_of_turn>"),
        Family("phi-3", "legacy", "<|endoftext|>", "<|end|>", ROLES, bos="<s>", cuts_behind=True, after="<|end|>"),
        Family(
            "phi-3-first-release",
            "legacy",
            "<|endoftext|>",
            "<|end|>",
            ROLES,
            bos="<s>",
            takes_system=False,
            cuts_behind=True,
            after="<|end|>",
        ),
        _roles("phi-4-mini", after="<|end|><|endoftext|>", takes_tool=True),
        _im("qwen-2.5", takes_tool=True),
        _im("qwen-3", "<think>\n\n</think>\n\n", added=THINK, takes_tool=True),
        _im("qwen-3-thinking", "\n</think>\n\n", added=THINK),
        _im("smollm2"),
        _im("smollm3", added=THINK, takes_tool=True),
        Family(
            "gpt-oss",
            "byte",
            "<|return|>",
            "<|return|>",
            HARMONY,
            takes_tool=True,
            before="<|channel|>final<|message|>",
            after="<|return|>",
        ),
        _s("vicuna-1.5", "legacy", " "),
        Family(
            "deepseek-r1-distill",
            "byte",
            DEEPSEEK[1],
            DEEPSEEK[1],
            DEEPSEEK,
            (*DEEPSEEK_ROLES, *THINK),
            bos=DEEPSEEK[0],
            after=DEEPSEEK[1],
        ),
        Family(
            "deepseek-v3",
            "byte",
            DEEPSEEK[1],
            DEEPSEEK[1],
            DEEPSEEK,
            DEEPSEEK_ROLES,
            bos=DEEPSEEK[0],
            after=DEEPSEEK[1],
        ),
        Family(
            "deepseek-v3.1",
            "byte",
            DEEPSEEK[1],
            DEEPSEEK[1],
            DEEPSEEK,
            (*DEEPSEEK_ROLES, *THINK),
            bos=DEEPSEEK[0],
            after=DEEPSEEK[1],
        ),
        Family(
            "granite-3",
            "byte",
            "<|end_of_text|>",
            "<|end_of_text|>",
            ("<|start_of_role|>", "<|end_of_role|>"),
            takes_tool=True,
            after="<|end_of_text|>",
        ),
        Family(
            "command-r",
            "gpt2",
            "<|END_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            COMMAND,
            bos="<BOS_TOKEN>",
            after="<|END_OF_TURN_TOKEN|>",
        ),
        Family(
            "command-r7b",
            "byte",
            "<|END_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            (*COMMAND, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            bos="<BOS_TOKEN>",
            before="<|START_RESPONSE|>",
            after="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        ),
        Family(
            "glm-4.5",
            "byte",
            "<|endoftext|>",
            "",
            ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
            THINK,
            takes_tool=True,
            before="\n<think></think>\n",
            open_end="<|user|>",
        ),
        _s("zephyr", "metaspace", ""),
        _im("chatml"),
        Family("falcon", "gpt2", "<|endoftext|>", "", before=" "),
        # Its beginning and its end of sequence are one token.
        Family("olmo-2", "gpt2", "<|endoftext|>", "<|endoftext|>", bos="<|endoftext|>", after="<|endoftext|>"),
        _im("qwen-2-vl", parts=True),
        _s("llava", "legacy", " ", parts=True, special=("<image>",)),
        _roles("header-in-the-answer", before="<|assistant|>\n"),
        _roles("closes-the-prompt"),
        _roles("upper-case-answers"),
        _roles("one-line-answers"),
        _roles("trims-only-answers"),
        Family("no-end", "byte", "<|endoftext|>", "", after="\n\n"),
        Family("end-in-history-only", "byte", "<|endoftext|>", "", ROLES, open_end="<|end|>"),
        _roles("end-before-the-answer", before="<|endoftext|>", bos="<|begin|>"),
        _roles("prompt-unless-answered"),
        _roles("clock"),
        Family("end-and-more", "byte", "<|endoftext|>", "<|endoftext|>", ROLES, after="<|endoftext|>"),
    )
}


@cache
def _base(kind: str) -> str:
    """A tokenizer without special tokens, as JSON.

    byte: byte-level, in pieces as Llama 3's; gpt2: byte-level, in GPT-2's pieces, which keep a line break apart from
    the word behind it; legacy: a space is put before every stretch of text between special tokens, and merges cross
    words (Llama 2, Mistral 1 and 2, Vicuna, Phi-3); metaspace: only before the first (Mistral 3, Zephyr); gemma: never.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind in ("byte", "gpt2"):
        tokenizer = Tokenizer(models.BPE())
        if kind == "byte":
            tokenizer.normalizer = normalizers.NFC()  # as Qwen's and OLMo's
        tokenizer.pre_tokenizer = (
            pre_tokenizers.ByteLevel(add_prefix_space=False)
            if kind == "gpt2"
            else pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex("|".join(_WORDS)), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([TEXT * 2], trainer)
        return str(tokenizer.to_str())
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    # Merges within lines, and a word's space before it, as SentencePiece learns them.
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*|[^▁\n]+|\n+"), "isolated")
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    learner.train_from_iterator(
        [TEXT * 2],
        trainers.BpeTrainer(vocab_size=320, special_tokens=["<unk>"], initial_alphabet=letters, show_progress=False),
    )
    learnt = json.loads(learner.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip: list[Any] = [decoders.Strip(" ", 1, 0)]
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return str(tokenizer.to_str())


def tokenizer(name: str, adds_begin: bool = True) -> Any:
    """The family's tokenizer, with its template; it adds the beginning of sequence to plain text where there is one."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    base = Tokenizer.from_str(_base(family.kind))
    special = dict.fromkeys(["<pad>", *([family.bos] if family.bos else []), family.eos, *family.special])
    base.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, rstrip=family.cuts_behind) for text in special]
    )
    base.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.added])
    if family.bos and adds_begin:
        base.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, base.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<pad>",
        eos_token=family.eos,
        bos_token=family.bos,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )


def message(family: Family, role: str, text: str) -> dict[str, Any]:
    """One message in the shape that the family's template reads."""
    return {"role": role, "content": [{"type": "text", "text": text}] if family.parts else text}


def messages(family: Family, turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [message(family, role, text) for role, text in turns]
