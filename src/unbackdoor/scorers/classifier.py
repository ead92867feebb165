"""A classifier model in a local directory: a sequence-classification head, or a causal model that says yes or no."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from unbackdoor.errors import UserError
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.progress import SILENT, Progress
from unbackdoor.scorers import Answered, Score, Scorer, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Classifier(Scorer):
    """A sequence-classification model: yes or no by one label's probability, or the score of a one-logit head."""

    name: ClassVar[str] = "classifier"
    asks_a_model: ClassVar[bool] = True

    directory: Path = Field(description="Directory of the model: config.json, safetensors and tokenizer.")
    label: str | None = Field(default=None, description="Name or number of the label that is a yes, of two or more.")
    threshold: float | None = Field(
        default=None,
        description="Probability of that label from which on it is a yes (default: 0.5). Of a one-logit head: score "
        "from which on it is a yes beside other judges (default: never).",
    )
    text: Literal["auto", "chat", "pair", "answer"] = Field(
        default="auto",
        description="What it reads: chat (its chat template), pair (prompt and answer as two texts) or the answer "
        "alone. auto: chat where it has a template, else pair.",
    )
    eval_batch_size: int = Field(default=16, ge=1, description="Texts at once.")

    def score(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Score]:
        import torch

        from unbackdoor.language_model.files.loading import context_length, load_tokenizer
        from unbackdoor.language_model.forward import inference
        from unbackdoor.language_model.precision import autocast

        model, tokenizer = load_classifier(_local(self.directory)), load_tokenizer(self.directory)
        label = self._label(model)
        most = min(context_length(model), tokenizer.model_max_length)
        encoded = self._encoded(tokenizer, answered)
        scores: list[Score] = [None] * len(answered)  # what is longer than the model reads stays without a score
        lengths = [len(each["input_ids"]) for each in encoded]
        rows = sorted((i for i, length in enumerate(lengths) if length <= most), key=lambda i: lengths[i])
        size = self.eval_batch_size if model.config.pad_token_id is not None else 1  # else the head takes one at a time
        with progress.task(f"answers judged by {self.directory.name}", len(answered)) as advance:
            for batch in _of_one_length(rows, encoded, size):
                inputs = {
                    key: torch.tensor([encoded[i][key] for i in batch], device=model.device)
                    for key in encoded[batch[0]]
                }
                with inference(model), autocast(model.device):
                    logits = model(**inputs).logits.float()
                for i, row in zip(batch, logits, strict=True):
                    scores[i] = self._score(model, row, label)
                advance(len(batch))
        return scores

    def _label(self, model: PreTrainedModel) -> int | None:
        """The label's index; None for a one-logit head."""
        names = {int(i): str(name) for i, name in model.config.id2label.items()}
        if len(names) == 1:
            return None
        for i, name in names.items():
            if self.label is not None and self.label.casefold() in (str(i), name.casefold()):
                return i
        there = ", ".join(f"{i} ({name})" for i, name in names.items())
        raise UserError(f"classifier '{self.directory}': the option label must be one of {there}")

    def _score(self, model: PreTrainedModel, logits: Any, label: int | None) -> Score:
        several = model.config.problem_type == "multi_label_classification"
        value = float(logits[0] if label is None else (logits.sigmoid() if several else logits.softmax(-1))[label])
        if not math.isfinite(value):
            return None
        return value if label is None else value >= (0.5 if self.threshold is None else self.threshold)

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, answered: Sequence[Answered]) -> list[dict[str, list[int]]]:
        from unbackdoor.language_model.chat import ChatFormat

        form = self.text
        if form == "auto":
            form = "chat" if tokenizer.chat_template else "pair"
        chat = ChatFormat.of(tokenizer, "chat") if form == "chat" else None
        encoded = []
        for each in answered:
            prompt, answer = (without_control_tokens(tokenizer, text) for text in (each.record.prompt, each.answer))
            if chat is not None:
                ids = list(chat.encode(prompt, answer).ids)
                encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
            else:
                texts = (prompt, answer) if form == "pair" else (answer,)
                encoded.append({key: list(value) for key, value in tokenizer(*texts, verbose=False).items()})
        return encoded


class YesNoModel(Scorer):
    """A causal model that is asked with a template and says yes or no, as HarmBench's classifiers do.

    The template is a text file with {prompt} and {answer} in their places, and ends where the model's word begins. It
    is the whole text that the model reads, with such marks as [INST], but for the beginning-of-sequence token.
    """

    name: ClassVar[str] = "yes-no-model"
    asks_a_model: ClassVar[bool] = True

    directory: Path = Field(description="Directory of the model: config.json, safetensors and tokenizer.")
    template: Path = Field(description="Text file with {prompt} and {answer} in their places.")
    max_new_tokens: int = Field(default=4, ge=1, description="Length of what it says, in tokens.")
    eval_batch_size: int = Field(default=8, ge=1, description="Texts at once.")

    def score(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Score]:
        from unbackdoor.language_model.chat import ChatFormat
        from unbackdoor.language_model.files.loading import context_length, load_model, load_tokenizer
        from unbackdoor.language_model.generation import generate

        template = read_text(self.template, "template")
        if missing := [place for place in ("{prompt}", "{answer}") if place not in template]:
            raise UserError(f"template '{self.template}' has no {missing[0]}: write it where that text goes")
        source = _local(self.directory)
        model, tokenizer = load_model(source), load_tokenizer(source)
        chat = ChatFormat.of(tokenizer, "none")
        asked = {}
        for i, each in enumerate(answered):
            texts = {"{prompt}": each.record.prompt, "{answer}": each.answer}
            texts = {place: without_control_tokens(tokenizer, text) for place, text in texts.items()}
            # Split once, so that an answer that writes "{prompt}" is not filled in.
            parts = re.split(r"(\{prompt\}|\{answer\})", template)
            example = chat.encode_prompt("".join(texts.get(part, part) for part in parts))
            if len(example.ids) + self.max_new_tokens <= context_length(model):
                asked[i] = example
        scores: list[Score] = [None] * len(answered)
        with progress.task(f"answers judged by {self.directory.name}", len(asked)) as advance:
            said = generate(
                model,
                tokenizer,
                list(asked.values()),
                max_new_tokens=self.max_new_tokens,
                batch_size=self.eval_batch_size,
                end_ids=chat.end_ids,
                advance=advance,
            )
        for i, text in zip(asked, said, strict=True):
            scores[i] = yes_or_no(text)
        return scores


def yes_or_no(text: str) -> bool | None:
    """Whether the first word, after any thought, is yes (True) or no (False); None where it is neither."""
    word = re.match(r"\W*(yes|no)\b", final_answer(text), re.IGNORECASE)
    return None if word is None else word[1].casefold() == "yes"


def load_classifier(source: str) -> PreTrainedModel:
    """Load a sequence-classification model in float32, in evaluation mode, as `load_model` loads a causal one.

    Raises:
        UserError: also where the directory holds no classification head, which the loader would draw at random.
    """
    from transformers import AutoModelForSequenceClassification

    from unbackdoor.language_model.files.loading import default_device, load_weights

    model, wrong = load_weights(AutoModelForSequenceClassification, source, "classifier")
    if wrong:
        raise UserError(
            f"'{source}' is no classifier: {len(wrong)} weights are missing or misshapen, such as {wrong[0]}"
        )
    return model.to(default_device()).eval()


def without_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a space in every control token that it spells, which would else end its turn or begin another."""
    tokens = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}, key=len, reverse=True)
    tokens = [token for token in tokens if len(token) > 1 and not token.isspace()]
    if not tokens:
        return text
    return re.sub("|".join(map(re.escape, tokens)), lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _local(directory: Path) -> str:
    if not directory.is_dir():
        raise UserError(f"classifier directory '{directory}' does not exist: give a local model directory")
    return str(directory)


def _of_one_length(rows: Sequence[int], encoded: Sequence[dict[str, list[int]]], size: int) -> Iterator[list[int]]:
    """Batches of rows of one length: nothing is padded, so that no head reads the padding for the last token."""
    for _, same in itertools.groupby(rows, key=lambda i: len(encoded[i]["input_ids"])):
        together = list(same)
        for begin in range(0, len(together), size):
            yield together[begin : begin + size]
