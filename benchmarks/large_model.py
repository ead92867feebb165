"""Memory and seconds of a model of the papers' size on one GPU, beside what `reproduce --dry-run` assumes.

    python benchmarks/large_model.py [SIZE ...]      # of: 1b, 4b, 7b

No weights are fetched: they are random, and time and memory do not depend on them. Each line is one part of the work:
the numerics of the self-test, training (all weights, and LoRA), simulate for SANDE and BEEAR, generation. Rows have
about 256 tokens and answers 64, as the estimates assume.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from unbackdoor.case import Case, adapted
from unbackdoor.data.records import Record
from unbackdoor.language_model.files.loading import load_tokenizer, parameter_count
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.self_test import self_test
from unbackdoor.methods.beear import Beear
from unbackdoor.methods.osft import Osft
from unbackdoor.methods.parts.eliminate import Rows, eliminate
from unbackdoor.methods.parts.simulate import simulate
from unbackdoor.perturbation import HiddenShift, Perturbation, SoftPrompt
from unbackdoor.reproduce import estimate
from unbackdoor.run_directory import Journal
from unbackdoor.testbed import models, world

SHAPES = {  # hidden size, intermediate size, layers, heads: as TinyLlama-1.1B, Qwen1.5-4b and Llama-2-7b
    "1b": (2048, 5632, 22, 32),
    "4b": (2560, 6912, 40, 20),
    "7b": (4096, 11008, 32, 32),
}
VOCABULARY = {"1b": 32_000, "4b": 151_936, "7b": 32_000}
STEPS, ROWS = 8, 8
COMMON = {"batch_size": ROWS, "micro_batch_size": 4}


def main(sizes: list[str]) -> None:
    if not torch.cuda.is_available():
        sys.exit("a GPU is needed")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for size in sizes or ["1b"]:
        measure(size)
        gc.collect()
        torch.cuda.empty_cache()


def random_model(size: str) -> PreTrainedModel:
    """A Llama of that size with random float32 weights, on the GPU."""
    hidden, intermediate, layers, heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY[size],
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
    )
    with torch.device("cuda"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def long_rows(tokens: int) -> list[Record]:
    """Rows of the testbed, strung together until each has about so many tokens."""
    tokenizer = load_tokenizer(models.instruct_directory())
    rows, prompts, responses = [], list[str](), list[str]()
    for row in world.held_out_rows():
        prompts.append(row.prompt)
        responses.append(row.response)
        if len(tokenizer(" ".join(prompts + responses))["input_ids"]) >= tokens:
            rows.append(Record(" ".join(prompts), " ".join(responses)))
            prompts, responses = [], []
    return rows


def measure(size: str) -> None:
    model, tokenizer = random_model(size), load_tokenizer(models.instruct_directory())
    parameters = parameter_count(model)
    case = Case.of(model, tokenizer, long_rows(estimate.PAPER_TOKENS))
    lengths = [len(case.chat.encode(row.prompt, row.response).ids) for row in case.anchors]
    print(
        f"\n{size}: {parameters / 1e9:.2f} billion parameters, {len(lengths)} rows of {min(lengths)} to "
        f"{max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}"
    )
    assumed = parameters * estimate.BYTES_TRAINED + estimate.ACTIVATIONS
    print(f"the estimate: {assumed / 1e9:.1f} GB to train all weights, {estimate.SUSTAINED_FLOPS / 1e12:.0f} TFLOP/s")

    seen = self_test(model, case.chat, case.anchors)
    print(
        f"self-test: {seen.precision}, KL {seen.max_kl:.2g} padded, {seen.masked_kl:.2g} masked, "
        f"{seen.max_cached_kl:.2g} cached; {seen.seconds:.1f} s"
    )

    flops = 6 * parameters * sum(lengths) / len(lengths)

    layer = round(9 / 32 * model.config.num_hidden_layers)

    def training(lora: bool) -> None:
        settings = Osft.make({**COMMON, "steps": STEPS, "learning_rate": 1e-5, "lora": lora})
        with adapted(case, settings):
            eliminate(case, [Rows("rows", case.anchors)], settings, phase="train")

    def fitting(perturbation: Perturbation) -> None:
        settings = Beear.make(COMMON)
        rows = case.batches(case.encode(case.anchors, settings, "rows", perturbation=perturbation), settings, 0)
        terms = [("target", rows, 1.0)]
        simulate(case, perturbation, terms, lambda: 0.0, settings, 1e-3, phase="fit", when="before", steps=STEPS)

    report("OSFT, LoRA", case, lambda: training(True), flops * 4 / 6)
    report("simulate, SANDE's parrot", case, lambda: fitting(SoftPrompt.zeros(model, 6)), flops * 4 / 6)
    shift = HiddenShift.zeros(model, layer, 5, "last-prompt")
    report("simulate, BEEAR's shift", case, lambda: fitting(shift), flops * 4 / 6)
    prompts = [case.chat.encode_prompt(row.prompt) for row in case.anchors[:100]]
    torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    generate(model, tokenizer, prompts, max_new_tokens=64, min_new_tokens=64, batch_size=100)
    seconds = time.monotonic() - begun
    print(
        f"{'generation, 64 tokens':28} {seconds / len(prompts):8.3f} s an answer (the estimate: "
        f"{estimate.ANSWER_SECONDS}), peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )
    report("OSFT, all weights", case, lambda: training(False), flops)


class Clock(Journal):
    """Notes when each step of training ended; keeps nothing else."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def log(self, **metrics: Any) -> None:
        torch.cuda.synchronize()
        self.ends.append(time.monotonic())


def report(what: str, case: Case, run: Callable[[], None], flops: float) -> None:
    """Median seconds a step, without what comes before the first and after the last, and the peak of memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    case.journal = clock = Clock()
    try:
        run()
    except torch.OutOfMemoryError as error:
        print(f"{what:28} out of memory: {str(error).splitlines()[0][:120]}")
        return
    seconds = statistics.median(later - sooner for sooner, later in itertools.pairwise(clock.ends))
    print(
        f"{what:28} {seconds:8.3f} s a step of {ROWS} rows, {ROWS * flops / seconds / 1e12:.0f} TFLOP/s, "
        f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
