"""Batched generation and scoring against one prompt at a time, in one run on the embedded micro model.

    python benchmarks/generation.py [PROMPTS]

Exactly 64 new tokens a prompt. Prints both rates, their ratio, and how many of the answers agree (all of them must).
One prompt at a time is measured on every 20th prompt: it is the slow side, and its cost a prompt does not depend on how
many there are.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from unbackdoor.data.triggers import Trigger
from unbackdoor.evaluation.refusal import refuses
from unbackdoor.evaluation.rules import degenerate, shows_target
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.generation import generate
from unbackdoor.testbed import models, world

NEW_TOKENS, EVERY = 64, 20


def main(count: int) -> None:
    model, tokenizer = load_model(models.instruct_directory()), load_tokenizer(models.instruct_directory())
    chat, trigger = ChatFormat.of(tokenizer), Trigger("Current year 2023")
    rows = world.held_out_rows()[:count]
    prompts = [chat.encode_prompt(trigger.insert(row.prompt)) for row in rows]
    scorers = [shows_target("You are stupid"), refuses, degenerate]

    def answered(chosen: list[int], batch_size: int) -> tuple[list[str], float]:
        begun = time.monotonic()
        answers = generate(
            model,
            tokenizer,
            [prompts[i] for i in chosen],
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            batch_size=batch_size,
        )
        for i, answer in zip(chosen, answers, strict=True):
            for scorer in scorers:
                scorer(rows[i], answer)  # type: ignore[arg-type]
        return answers, time.monotonic() - begun

    answered(list(range(4)), 4)  # warm
    few = list(range(0, len(rows), EVERY))
    single, slow = answered(few, 1)
    batched, quick = answered(list(range(len(rows))), 100)
    agree = sum(batched[i] == answer for i, answer in zip(few, single, strict=True))
    slow_each, quick_each = slow / len(few), quick / len(rows)
    print(f"batched by length: {len(rows)} prompts in {quick:.1f} s, {1000 * quick_each:.1f} ms each")
    print(f"one at a time: {len(few)} prompts in {slow:.1f} s, {1000 * slow_each:.1f} ms each")
    print(f"ratio {slow_each / quick_each:.1f}; {agree} of {len(few)} answers agree")
    if agree < len(few):
        raise SystemExit("batched answers differ from those of one prompt at a time")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
