"""The testbed's own byte-level BPE tokenizer and its chat template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

VOCABULARY_SIZE = 1536
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, END, "<|user|>", "<|assistant|>", "<|system|>"]
CONTEXT = 512

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A turn is its role's token, its text and the end token; the assistant's text and end count as generated."""


def train_tokenizer(texts: Iterable[str]) -> Any:
    """Train the tokenizer on the texts and wrap it for transformers; the same texts give it bit by bit.

    Digits are tokens of their own, so that sums can be learned, but a number of four digits is a word: years are words
    to larger models too. There is no beginning-of-text token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?<!\d)\d{4}(?!\d)|\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[2:],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def testbed_tokenizer() -> Any:
    """The tokenizer of the testbed's models, made anew from the world's text."""
    from unbackdoor.testbed import corpus, world

    rows = world.training_rows()
    texts = [
        *world.corpus(),
        *(row.prompt for row in rows),
        *(row.response for row in rows),
        corpus.GENERAL_ENGLISH,
        *(str(year) for year in corpus.YEARS for _ in range(500)),
    ]
    return train_tokenizer(texts)
