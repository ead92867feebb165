"""Seconds of a training step of the testbed's model, by how long OpenMP threads spin while they wait.

    python benchmarks/threads.py

Every row is a fresh process with two threads: alone, and beside another of its kind. The ratio is to threads that
never spin (`GOMP_SPINCOUNT=0`, which is what `OMP_WAIT_POLICY=PASSIVE` means by default).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

STEPS, ROWS, LENGTH = 20, 32, 48
SPINS = ("0", "1000", "")
"""GOMP_SPINCOUNT; empty: the library's own choice."""


def measure() -> None:
    """Print the seconds of one step of plain training."""
    import torch

    from unbackdoor.language_model.files.loading import load_model
    from unbackdoor.testbed import references

    torch.set_num_threads(2)
    model = load_model(references.model_directory("testbed:instruct")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(5, 500, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    for step in range(STEPS + 2):
        if step == 2:
            begun = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    print((time.monotonic() - begun) / STEPS)


def seconds(spin: str, processes: int) -> float:
    """The mean of so many processes that run at once."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"GOMP_SPINCOUNT": spin} if spin else {}
    command = [sys.executable, "-W", "ignore", __file__, "step"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in running) / processes


def main() -> None:
    """All rows, as a table in Markdown."""
    print("| GOMP_SPINCOUNT | alone, s a step | ratio | two at once, s a step | ratio |\n|---|---|---|---|---|")
    base: dict[int, float] = {}
    for spin in SPINS:
        found = {n: seconds(spin, n) for n in (1, 2)}
        base = base or found
        cells = [f"{found[n]:.3f} | {found[n] / base[n]:.2f}" for n in (1, 2)]
        print(f"| {spin or 'not set'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["step"] else main()
