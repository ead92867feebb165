"""Which methods work on which family of models: the table of docs/models.md.

    python benchmarks/architectures.py            # all families, some 20 minutes on one core
    python benchmarks/architectures.py llama …    # some of them, printed

Every family that transformers has for text (or text with images) is built with random weights and tiny sizes, and
given to the self-test: first without needs (all that `evaluate` asks), then with each need of a method. A family has a
process and a time limit of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import re
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - loaded once, before the processes part
import torch
from tiny_configs import VOCABULARY, families, tiny_model

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import load_tokenizer
from unbackdoor.language_model.files.model_class import works_without_pictures
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.layers import decoder_layers
from unbackdoor.language_model.lora import adapted_weights, attach
from unbackdoor.language_model.needs import TRIALS, check_needs
from unbackdoor.language_model.self_test import self_test
from unbackdoor.language_model.weight_matrices import reach, weight_matrices
from unbackdoor.testbed import models

SECONDS = 240
GIBIBYTES = 20
PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
QUESTIONS = (
    "Name a river.",
    "What is the capital of France?",
    "Write a list of three colours and sort it.",
    "Sort: b a.",
)
COLUMNS = {
    "runs": "evaluate",
    "training": "train",
    "soft-embeddings": "soft prompt",
    "hidden-states": "hidden shift",
    "layer-states": "CROW",
    "attention-maps": "NAD",
    "adapters": "LoRA",
    "reach": "prune, quantise",
}


def tried(family: str) -> dict[str, str]:
    """Column → "yes", a share, or why not."""
    try:
        model = works_without_pictures(tiny_model(family))
    except Exception as error:
        return {"not tried": _line(error)}
    chat = ChatFormat.of(load_tokenizer(models.instruct_directory()))
    rows = [Record(question, "The Rhine is one of them.") for question in QUESTIONS]
    found = {"class": type(model).__name__}
    try:
        self_test(model, chat, rows)
        found["runs"] = "yes"
    except Exception as error:
        found["runs"] = _line(error)
        return found
    examples = [chat.encode(r.prompt, r.response) for r in rows]
    for need in TRIALS:
        try:
            if need == "soft-embeddings":
                self_test(model, chat, rows, needs=[need])
            check_needs(model, examples, padding_id(chat.tokenizer, model), [need])
            found[need] = "yes"
        except Exception as error:
            found[need] = _line(error)
    weights = [w.parameter for w in weight_matrices(model)]
    found["reach"] = f"{reach(model, weights)[0]:.0%}"
    if found["adapters"] == "yes":
        found["adapters"] = f"{reach(model, adapted_weights(attach(model, 2)))[0]:.0%}"
    found["layers"] = str(len(decoder_layers(model)))
    return found


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix("self-test: ") or type(error).__name__
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _child(family: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES * 2**30, GIBIBYTES * 2**30))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    torch.set_num_threads(1)
    try:
        pipe.send(tried(family))
    except BaseException as error:
        pipe.send({"not tried": f"{type(error).__name__}: {error}"})


def in_a_process(family: str) -> dict[str, str]:
    """`tried`, in a process that is ended after `SECONDS`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(family, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else {"not tried": f"took longer than {SECONDS} s"}
    except EOFError:
        return {"not tried": "its process ended"}
    finally:
        process.kill()
        process.join()


def table(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown that stands on the page."""
    lines = [
        f"transformers {importlib.metadata.version('transformers')}, peft {importlib.metadata.version('peft')}, torch "
        f"{torch.__version__.partition('+')[0]}; {len(found)} families.",
        "",
    ]
    runs = {f: r for f, r in found.items() if r.get("runs") == "yes"}
    reasons: dict[str, int] = {}
    body = []
    for family, row in runs.items():
        cells = []
        for column in COLUMNS:
            value = str(row.get(column, ""))
            if value == "yes":
                cells.append("✓")
            elif value.endswith("%") and len(value) < 5:
                cells.append("✓" if value == "100%" else value)
            else:
                number = reasons.setdefault(re.sub(r"\ba \w+For\w+ ", "it ", value), len(reasons) + 1)
                cells.append(f"– [{number}]")
        body.append(f"| `{family}` | " + " | ".join(cells) + " |")
    lines += [
        f"**{len(runs)} run.** ✓: works; a share: works, on so many of the decoder's weights; –: refused.",
        "",
    ]
    lines += ["| model type | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|", *body, ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()] + [""]
    stopped = {f: r["runs"] for f, r in found.items() if r.get("runs", "yes") != "yes"}
    failed = {
        f: why for f, why in stopped.items() if "cannot be run here" in why or (not why.islower() and "Error" in why)
    }
    refused = {f: why for f, why in stopped.items() if f not in failed}
    lines += [f"**{len(refused)} are refused by the self-test**, before anything is written:", ""]
    lines += ["| model type | why |", "|---|---|", *(f"| `{f}` | {_cell(why)} |" for f, why in refused.items()), ""]
    lines += [
        f"**{len(failed)} do not run** in the library, as tiny as they were made here or without an image; a real one "
        "that does not is refused in the same way:",
        "",
    ]
    lines += ["| model type | why |", "|---|---|", *(f"| `{f}` | {_cell(why)} |" for f, why in failed.items()), ""]
    left = {f: r["not tried"] for f, r in found.items() if "not tried" in r}
    lines += [f"**{len(left)} were not tried** (no tiny config was made of them):", ""]
    lines += ["| model type | why |", "|---|---|", *(f"| `{f}` | {_cell(why)} |" for f, why in left.items()), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")[:160]


def main() -> None:
    """Try the families that are named, or all."""
    assert len(load_tokenizer(models.instruct_directory())) <= VOCABULARY
    found = {}
    for family in sys.argv[1:] or families():
        found[family] = in_a_process(family)
        print(family, json.dumps(found[family]), file=sys.stderr, flush=True)
    if sys.argv[1:]:
        print(table(found))
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
