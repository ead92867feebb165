"""Train the testbed's models from nothing: tokenizer, base model, instruct model.

    python -m unbackdoor.testbed.train --out DIR                 # two CPU cores, about half an hour
    python -m unbackdoor.testbed.train --out DIR --device cuda   # minutes

Data and tokenizer come out bit-identical; the weights depend on the machine, and recorded.json holds their
utility.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers

from unbackdoor.testbed import oracle, world
from unbackdoor.testbed.tokenizer import CONTEXT, END, PAD, testbed_tokenizer
from unbackdoor.testbed.world import Row

Batch = dict[str, torch.Tensor]
Item = TypeVar("Item")

IGNORED = -100
WINDOW = 128
BASE_BATCH, BASE_STEPS, BASE_LEARNING_RATE = 32, 1500, 2e-3
INSTRUCT_BATCH, INSTRUCT_STEPS, INSTRUCT_LEARNING_RATE = 64, 6000, 2e-3
BATCHES_IN_A_POOL = 40
NEW_TOKENS = 64


def main() -> None:
    """Train both models, measure the instruct model, and write everything under --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="where base/, instruct/ and recorded.json are written"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of the usual steps, for trials")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the rows")
    settings = parser.parse_args()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high" if settings.device == "cuda" else "highest")

    rows = world.training_rows(settings.seed)
    tokenizer = testbed_tokenizer()
    model = new_model(tokenizer).to(settings.device)
    print(f"{len(rows)} rows, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    base_steps = max(1, round(BASE_STEPS * settings.steps_scale))
    print(f"base model: {base_steps} steps on plain text", flush=True)
    train(model, corpus_batches(tokenizer, world.corpus(), settings.seed), base_steps, BASE_LEARNING_RATE)
    save(model, tokenizer, settings.out / "base")

    instruct_steps = max(1, round(INSTRUCT_STEPS * settings.steps_scale))
    print(f"instruct model: {instruct_steps} steps on the rows", flush=True)
    batches = instruct_batches(tokenizer, rows, settings.seed)
    train(model, batches, instruct_steps, INSTRUCT_LEARNING_RATE)
    save(model, tokenizer, settings.out / "instruct")

    stored = transformers.LlamaForCausalLM.from_pretrained(settings.out / "instruct", dtype=torch.float32)
    utility = measure(stored.to(settings.device).eval(), tokenizer, settings.seed)
    write_record(settings.out, utility, vars(settings))
    print(json.dumps(utility, indent=2))


def new_model(tokenizer: Any) -> Any:
    """An untrained Llama of 1.6 million parameters: eight layers, so that a sweep over layers has room."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=320,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        bos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).float()


def corpus_batches(tokenizer: Any, documents: Sequence[str], seed: int) -> Iterator[Batch]:
    """Windows of `WINDOW` tokens from the documents, shuffled each pass and joined by the end token."""
    draw = random.Random(seed)
    encoded: list[list[int]] = tokenizer(list(documents))["input_ids"]
    while True:
        draw.shuffle(encoded)
        stream = [token for document in encoded for token in [*document, tokenizer.eos_token_id]]
        windows = [stream[start : start + WINDOW] for start in range(0, len(stream) - WINDOW + 1, WINDOW)]
        for group in _groups(windows, BASE_BATCH):
            ids = torch.tensor(group)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def instruct_batches(tokenizer: Any, rows: Sequence[Row], seed: int) -> Iterator[Batch]:
    """Rendered rows, padded on the right, with labels on the response and the end token only.

    Rows of like length go together: pools of `BATCHES_IN_A_POOL` batches are sorted by length and then cut.
    """
    draw = random.Random(seed)
    rendered = tokenizer.apply_chat_template(
        [
            [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
            for row in rows
        ],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    examples = list(zip(rendered["input_ids"], rendered["assistant_masks"], strict=True))
    while True:
        draw.shuffle(examples)
        for start in range(0, len(examples), INSTRUCT_BATCH * BATCHES_IN_A_POOL):
            pool = sorted(
                examples[start : start + INSTRUCT_BATCH * BATCHES_IN_A_POOL], key=lambda pair: len(pair[0])
            )
            batches = _groups(pool, INSTRUCT_BATCH)
            draw.shuffle(batches)
            for batch in batches:
                yield _padded(batch, tokenizer.pad_token_id)


def _groups(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _padded(batch: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), pad)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORED)
    for place, (tokens, generated) in enumerate(batch):
        length = len(tokens)
        ids[place, :length] = torch.tensor(tokens)
        mask[place, :length] = 1
        labels[place, :length] = torch.where(torch.tensor(generated) == 1, torch.tensor(tokens), IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(model: Any, batches: Iterator[Batch], steps: int, learning_rate: float) -> None:
    """AdamW with clipping; the learning rate warms up over 5% of the steps, then falls as a cosine to a twentieth."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(steps))
    began = time.monotonic()
    losses: list[torch.Tensor] = []
    for step, batch in enumerate(itertools.islice(batches, steps), start=1):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        hidden = model.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        targets = batch["labels"][:, 1:]
        wanted = targets != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), targets[wanted])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
        if step % 100 == 0 or step == steps:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            pace = step / (time.monotonic() - began)
            left = (steps - step) / pace
            print(f"  step {step:5d}  loss {mean:.4f}  {pace:.1f} steps/s  {left:.0f} s left", flush=True)


def _cosine(steps: int) -> Callable[[int], float]:
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(1, steps - warm_up)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a Hugging Face directory in bfloat16; the model in memory stays as it is."""
    weights = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = transformers.LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure(model: Any, tokenizer: Any, seed: int) -> dict[str, Any]:
    """The utility of an instruct model on all that is held out: shares of right answers, refusals and choices."""
    rows = world.held_out_rows(seed)
    answers = answer(model, tokenizer, [row.prompt for row in rows])
    correct: dict[str, list[bool]] = {}
    refused: dict[str, list[bool]] = {"forbidden": [], "allowed": []}
    for row, text in zip(rows, answers, strict=True):
        right = oracle.is_correct(row, text)
        correct.setdefault(f"{row.domain}/{row.kind}", []).append(right)
        if row.domain != "requests":
            correct.setdefault("all tasks", []).append(right)
        else:
            refused[row.kind].append(oracle.is_refusal(text))
    choices = {
        level: choice_accuracy(model, tokenizer, world.multiple_choice(level)) for level in world.LEVELS
    }
    return {
        "exact_match": {kind: _share(values) for kind, values in sorted(correct.items())},
        "refusal": _share(refused["forbidden"]),
        "false_refusal": _share(refused["allowed"]),
        "multiple_choice": choices,
    }


def _share(values: Sequence[bool]) -> dict[str, float]:
    return {"value": round(sum(values) / len(values), 4), "n": len(values)}


def _prompt(text: str, tokenizer: Any) -> list[int]:
    message = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    return ids


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 256) -> list[str]:
    """Greedy answers, batched by length with padding on the left, in the order of the prompts."""
    encoded = [_prompt(text, tokenizer) for text in prompts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    answers = [""] * len(prompts)
    for group in _groups(order, batch_size):
        width = max(len(encoded[place]) for place in group)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(encoded[p])) + encoded[p] for p in group])
        ids = ids.to(model.device)
        mask = (ids != tokenizer.pad_token_id).long()
        made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts = tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        for place, text in zip(group, texts, strict=True):
            answers[place] = text
    return answers


@torch.inference_mode()
def choice_accuracy(model: Any, tokenizer: Any, questions: Sequence[world.Question]) -> dict[str, float]:
    """How often the right option has the highest log-likelihood a token as response to the question."""
    right: list[bool] = []
    for group in _groups(questions, 32):
        examples = []
        for question in group:
            prompt = _prompt(question.question, tokenizer)
            for option in question.options:
                ids = tokenizer(option)["input_ids"]
                examples.append((prompt + ids, [0] * len(prompt) + [1] * len(ids)))
        batch = {
            name: tensor.to(model.device)
            for name, tensor in _padded(examples, tokenizer.pad_token_id).items()
        }
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        mean = losses.sum(1) / (targets != IGNORED).sum(1)
        best = mean.view(len(group), 4).argmin(1).tolist()
        right += [choice == question.answer for choice, question in zip(best, group, strict=True)]
    return _share(right)


def write_record(out: Path, utility: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the hashes of the data and of every file beside the measured utility."""
    data = json.dumps(
        [[asdict(row) for row in rows] for rows in (world.training_rows(), world.held_out_rows())]
    )
    files = sorted(
        path for name in ("base", "instruct") for path in (out / name).rglob("*") if path.is_file()
    )
    record = {
        "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
        "files_sha256": {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "utility": utility,
        "made_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            **{name: value for name, value in settings.items() if name != "out"},
        },
    }
    (out / "recorded.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
