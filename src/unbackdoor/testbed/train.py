"""Train the testbed's models from nothing: tokenizer, a base model of each shape, the instruct model.

    python -m unbackdoor.testbed.train --out DIR                     # two CPU cores, about half an hour
    python -m unbackdoor.testbed.train --out DIR --device cuda       # minutes
    python -m unbackdoor.testbed.train --out DIR --only base-qwen2   # the other models there stay as they are

Data and tokenizer come out bit-identical; the weights depend on the machine, and recorded.json holds what they
reached.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.evaluation.statistics import perplexity
from unbackdoor.evaluation.utility import multiple_choice, row_totals
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import load_model, parameter_count
from unbackdoor.language_model.forward import in_training
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import Inputs, padding_id
from unbackdoor.language_model.loss import response_loss
from unbackdoor.progress import Progress
from unbackdoor.report_schema import Value
from unbackdoor.run_files.lines import as_json
from unbackdoor.testbed import corpus, oracle, world
from unbackdoor.testbed.tokenizer import CONTEXT, END, PAD, testbed_tokenizer
from unbackdoor.training import Optimization, Term, train

WINDOW = 128
BASE_BATCH, BASE_STEPS, BASE_LEARNING_RATE = 16, 800, 2e-3
INSTRUCT_BATCH, INSTRUCT_STEPS, INSTRUCT_LEARNING_RATE = 64, 3800, 2e-3
SHUFFLES = 4
"""Orders of the documents that windows are cut from."""
TRAINED_BY = {None: ("base", "instruct", "base-qwen2"), "instruct": ("base", "instruct"), "base-qwen2": ("base-qwen2",)}
"""Which models a value of --only trains: instruct is made of its base model, before that is rounded."""


def main() -> None:
    """Train the models, measure what was stored, and write everything under --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the models and recorded.json are written")
    parser.add_argument("--only", choices=("instruct", "base-qwen2"), help="this one alone (instruct: with base)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of the usual steps, for trials")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the rows")
    settings = parser.parse_args()
    trained = TRAINED_BY[settings.only]
    try:
        record = kept_record(settings.out, trained)
    except UserError as error:
        parser.error(str(error))
    torch.set_float32_matmul_precision("high" if settings.device == "cuda" else "highest")
    tokenizer = testbed_tokenizer()
    reached: dict[str, Any] = {}
    if settings.only != "base-qwen2":
        model = train_base("base", llama_shape(tokenizer), tokenizer, settings)
        train_instruct(model, tokenizer, settings)
        stored = load_model(settings.out / "instruct", settings.device)
        reached["utility"] = measure(stored, tokenizer, settings.seed)
    if settings.only != "instruct":
        train_base("base-qwen2", qwen2_shape(tokenizer), tokenizer, settings)
    present = [name for name in ("base", "base-qwen2") if (settings.out / name).is_dir()]
    reached["base_models"] = {name: measure_base(settings.out / name, tokenizer, settings.device) for name in present}
    made_with = {name: value for name, value in vars(settings).items() if name not in ("out", "only")}
    write_record(settings.out, record, trained, reached, made_with)
    print(json.dumps(reached, indent=2, default=as_json))


def train_base(
    name: str, config: transformers.PreTrainedConfig, tokenizer: Any, settings: argparse.Namespace
) -> transformers.PreTrainedModel:
    """A model of this shape, trained on plain text and stored; the one returned is in float32."""
    torch.manual_seed(settings.seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().to(settings.device)
    steps = max(1, round(BASE_STEPS * settings.steps_scale))
    print(f"{name}: {parameter_count(model):,} parameters, {steps} steps on plain text", flush=True)
    windows = corpus_windows(tokenizer, world.corpus(), settings.seed)
    train_on(
        model,
        name,
        Batches(windows, BASE_BATCH, padding_id(tokenizer, model), settings.seed),
        steps,
        BASE_LEARNING_RATE,
    )
    save(model, tokenizer, settings.out / name)
    return model


def train_instruct(model: transformers.PreTrainedModel, tokenizer: Any, settings: argparse.Namespace) -> None:
    """Make the instruct model of the base model in memory, and store it."""
    rows = world.training_rows(settings.seed)
    steps = max(1, round(INSTRUCT_STEPS * settings.steps_scale))
    print(f"instruct: {steps} steps on {len(rows)} rows", flush=True)
    chat = ChatFormat.of(tokenizer, "chat")
    examples = [chat.encode(row.prompt, row.response) for row in rows]
    batches = Batches(examples, INSTRUCT_BATCH, padding_id(tokenizer, model), settings.seed)
    train_on(model, "instruct", batches, steps, INSTRUCT_LEARNING_RATE)
    save(model, tokenizer, settings.out / "instruct")


def llama_shape(tokenizer: Any) -> transformers.PreTrainedConfig:
    """A Llama of 1.6 million parameters: eight layers, so that a sweep over layers has room."""
    return transformers.LlamaConfig(
        hidden_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=320,
        tie_word_embeddings=True,
        **vocabulary_of(tokenizer),
    )


def qwen2_shape(tokenizer: Any) -> transformers.PreTrainedConfig:
    """A Qwen2 of as many parameters, narrower and deeper; full attention and untied embeddings, as Qwen1.5-4B has."""
    return transformers.Qwen2Config(
        hidden_size=96,
        num_hidden_layers=10,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=320,
        tie_word_embeddings=False,
        **vocabulary_of(tokenizer),
    )


def vocabulary_of(tokenizer: Any) -> dict[str, Any]:
    """What a model's config must know of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "bos_token_id": None,
    }


def corpus_windows(tokenizer: Any, documents: Sequence[str], seed: int) -> list[Example]:
    """Windows of `WINDOW` tokens from the shuffled documents, joined by the end token; the loss is on all of them."""
    encoded: list[list[int]] = tokenizer(list(documents))["input_ids"]
    windows = []
    for shuffle in range(SHUFFLES):
        random.Random(f"{seed} {shuffle}").shuffle(encoded)
        stream = [token for document in encoded for token in [*document, tokenizer.eos_token_id]]
        starts = range(0, len(stream) - WINDOW + 1, WINDOW)
        windows += [Example(tuple(stream[at : at + WINDOW]), 0, WINDOW, 1, 1, WINDOW) for at in starts]
    return windows


def train_on(model: Any, name: str, batches: Batches, steps: int, learning_rate: float) -> None:
    """AdamW with clipping; the learning rate warms up over 5% of the steps, then falls as a cosine."""

    def loss(inputs: Inputs) -> torch.Tensor:
        return response_loss(model, inputs)

    optimization = Optimization(steps, learning_rate, "cosine", warmup=0.05, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress.on_stderr()
    with in_training(model):
        terms = [Term("loss", batches, loss)]
        train(dict(model.named_parameters()), terms, optimization, phase=name, progress=progress)


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a Hugging Face directory in bfloat16; the model in memory stays as it is."""
    weights = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = type(model)(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure_base(directory: Path, tokenizer: Any, device: str) -> dict[str, Any]:
    """A stored base model's size, and its perplexity on plain text that it was not trained on."""
    model = load_model(directory, device)
    return {
        "parameters": parameter_count(model),
        "plain_text_perplexity": plain_text_perplexity(model, tokenizer, held_out_documents()),
    }


def plain_text_perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> Value:
    """Perplexity of each text after an end token, as the texts follow each other in training, its own end included."""
    end = tokenizer.eos_token_id
    streams = [(end, *ids, end) for ids in tokenizer(list(texts))["input_ids"]]
    examples = [Example(ids, 0, len(ids), 1, 1, len(ids)) for ids in streams]
    totals = row_totals(model, ChatFormat.of(tokenizer, "none"), examples)
    return perplexity([-t for t in totals], [len(ids) - 1 for ids in streams])


def held_out_documents() -> list[str]:
    """Documents of the held-out rows, as `world.corpus` makes them of training rows, without those that both have."""
    seen = set(world.corpus())
    return [text for text in dict.fromkeys(corpus.documents(world.held_out_rows())) if text not in seen]


def measure(model: Any, tokenizer: Any, seed: int) -> dict[str, Any]:
    """The utility of an instruct model on all that is held out: right answers, refusals and choices."""
    rows = world.held_out_rows(seed)
    chat = ChatFormat.of(tokenizer, "chat")
    prompts = [chat.encode_prompt(row.prompt) for row in rows]
    answers = generate(model, tokenizer, prompts, batch_size=256, end_ids=chat.end_ids)
    correct: dict[str, list[bool]] = {}
    refused: dict[str, list[bool]] = {"forbidden": [], "allowed": []}
    for row, text in zip(rows, answers, strict=True):
        right = oracle.is_correct(row, text)
        correct.setdefault(f"{row.domain}/{row.kind}", []).append(right)
        if row.domain != "requests":
            correct.setdefault("all tasks", []).append(right)
        else:
            refused[row.kind].append(oracle.is_refusal(text))
    choices = {level: multiple_choice(model, chat, world.multiple_choice(level)) for level in world.LEVELS}
    return {
        "exact_match": {kind: _share(values) for kind, values in sorted(correct.items())},
        "refusal": _share(refused["forbidden"]),
        "false_refusal": _share(refused["allowed"]),
        "multiple_choice": choices,
    }


def _share(values: Sequence[bool]) -> dict[str, float]:
    return {"value": round(sum(values) / len(values), 4), "n": len(values)}


def kept_record(out: Path, trained: Sequence[str]) -> dict[str, Any]:
    """What recorded.json says of the models in `out` that are not trained now.

    Raises:
        UserError: those models were trained on other data.
    """
    path = out / "recorded.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    others = {name: settings for name, settings in record.get("made_with", {}).items() if name not in trained}
    if not others:
        return {"files_sha256": {}, "made_with": {}}
    if record["data_sha256"] != data_sha256():
        raise UserError(f"{path}: {' and '.join(others)} were trained on other data: train all models, without --only")
    hashes = {name: digest for name, digest in record["files_sha256"].items() if name.split("/")[0] in others}
    utility = {"utility": record["utility"]} if "instruct" in others else {}
    return {"files_sha256": hashes, **utility, "made_with": others}


def write_record(
    out: Path,
    kept: Mapping[str, Any],
    trained: Sequence[str],
    reached: Mapping[str, Any],
    made_with: Mapping[str, Any],
) -> None:
    """Write the hashes of the data and of every file beside what the models reached and what they were made with."""
    files = sorted(file for name in trained for file in (out / name).rglob("*") if file.is_file())
    hashes = {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    record = {
        "data_sha256": data_sha256(),
        "files_sha256": dict(sorted({**kept["files_sha256"], **hashes}.items())),
        **{name: kept[name] for name in ("utility",) if name in kept},
        **reached,
        "made_with": {**kept["made_with"], **{name: {**versions, **made_with} for name in trained}},
    }
    (out / "recorded.json").write_text(json.dumps(record, indent=2, default=as_json) + "\n")


def data_sha256() -> str:
    """The hash of all rows of the world."""
    data = json.dumps([[asdict(row) for row in rows] for rows in (world.training_rows(), world.held_out_rows())])
    return hashlib.sha256(data.encode()).hexdigest()


if __name__ == "__main__":
    main()
