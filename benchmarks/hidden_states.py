"""Processor time of hidden states after 2 of 8 layers: a whole pass, and one that ends there, in turn in one run.

    python benchmarks/hidden_states.py

The testbed's model, 50 rows of 48 tokens as a method reads prompts. Every value is the median of so many passes.
"""

from __future__ import annotations

import statistics
import time

import torch

from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.forward import forward, inference
from unbackdoor.language_model.hidden_states import hidden_states_after
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import decoder_layers
from unbackdoor.testbed import models

ROWS, LENGTH, LAYER, PASSES = 50, 48, 2, 15


def main() -> None:
    """One line: both, and their ratio."""
    model = load_model(models.instruct_directory())
    drawn = torch.randint(5, 500, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    inputs = collate([Example(tuple(ids), 0, 0, 0, 0, 0) for ids in drawn], 0)
    took: dict[str, list[float]] = {"whole": [], "ended": []}
    with inference(model):
        for _ in range(PASSES + 1):
            begun = time.process_time()
            whole = forward(model, inputs, output_hidden_states=True).hidden_states[LAYER]
            between = time.process_time()
            ended = hidden_states_after(model, LAYER, inputs)
            took["whole"].append(between - begun)
            took["ended"].append(time.process_time() - between)
            assert torch.equal(whole, ended)
    whole_time, ended_time = (statistics.median(times[1:]) for times in took.values())
    print(
        f"after {LAYER} of {len(decoder_layers(model))} layers: {1000 * whole_time:.1f} ms whole, "
        f"{1000 * ended_time:.1f} ms ended there, ratio {ended_time / whole_time:.2f}"
    )


if __name__ == "__main__":
    main()
