"""MMLU and ARC through lm-evaluation-harness, an optional extra: from local files, or by name when online."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unbackdoor.errors import UserError
from unbackdoor.evaluation.multiple_choice import Scored, harness_form
from unbackdoor.evaluation.question_sets import Question, SetName
from unbackdoor.evaluation.statistics import share
from unbackdoor.language_model.files.loading import context_length, without_chatter
from unbackdoor.language_model.precision import computes_in_bfloat16
from unbackdoor.report_schema import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASKS = {"mmlu": "mmlu/default", "arc_easy": "arc", "arc_challenge": "arc", "piqa": "piqa"}
"""The harness's tasks that are run by name, and the folders of its own that define them (all of them take 24 s)."""


def harness_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[SetName, Sequence[Question]] | Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, Scored]:
    """Zero-shot scores by lm-evaluation-harness, without chat template: its acc and acc_norm, with its log-likelihoods.

    Args:
        model: a loaded causal language model; float32 on a CPU, bfloat16 compute on a GPU.
        tokenizer: its tokenizer, which stays as it is.
        tasks: questions by task name, written as a local task of the same protocol (nothing is fetched); or names
            among `mmlu`, `arc_easy`, `arc_challenge`, `piqa`, whose data the harness fetches from the hub.
        limit: at most this many questions of each task; by name of each MMLU subject, as the harness counts.
        batch_size: continuations a forward pass.

    Raises:
        UserError: the harness is not installed, an unknown name, no questions, or whatever the harness raises.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the harness's protocol needs lm_eval: pip install 'unbackdoor[utility]'")
    names = list(tasks)
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise UserError(f"unknown task '{', '.join(unknown)}': use one of {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} questions: give at least 1")
    with tempfile.TemporaryDirectory(prefix="unbackdoor-tasks-") as folder, _undisturbed():
        try:
            samples = _samples(model, tokenizer, tasks, Path(folder), limit, batch_size)
        except UserError:
            raise
        except Exception as error:  # from a hub that does not answer to an assertion about a text's length
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"lm-evaluation-harness failed on {', '.join(names)}: {reason}") from error
    return {name: _scored(rows) for name, rows in samples.items()}


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[SetName, Sequence[Question]] | Sequence[str],
    folder: Path,
    limit: int | None,
    batch_size: int,
) -> dict[str, list[dict[str, Any]]]:
    """What the harness logs of every question, by task; a group's subjects follow each other."""
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if isinstance(tasks, Mapping):
        for local, questions in tasks.items():
            _write_task(folder, local, questions)
        include = [folder]
    else:
        own = Path(str(lm_eval.__file__)).parent / "tasks"
        include = sorted({own / TASKS[name] for name in tasks})
    harness_model = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # the harness gives it a padding token
        max_length=context_length(model),
        batch_size=batch_size,
        mixed_precision_dtype="bfloat16" if computes_in_bfloat16(model.device) else None,
        softmax_dtype="float32",
    )
    samples: dict[str, list[dict[str, Any]]] = {}
    manager = TaskManager(include_path=[str(path) for path in include], include_defaults=False)
    for name in tasks:
        loaded = manager.load([f"local_{name}" if isinstance(tasks, Mapping) else name])
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        # `evaluate`, not `simple_evaluate`: that one seeds every random state and calls git and nvidia-smi
        found = evaluate(harness_model, loaded, limit=limit, bootstrap_iters=0)
        samples[name] = [row for task in found["samples"].values() for row in sorted(task, key=lambda r: r["doc_id"])]
    return samples


def _write_task(folder: Path, name: str, questions: Sequence[Question]) -> None:
    """A task of the harness as YAML and JSONL. The texts are fields, never templates."""
    if not questions:
        raise UserError(f"no questions for the task '{name}'")
    rows = []
    for question in questions:
        context, options = harness_form(question, name)
        rows.append({"query": context, "choices": list(options), "gold": question.answer})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = ["acc"] if name == "mmlu" else ["acc", "acc_norm"]
    task = {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def _scored(samples: Sequence[Mapping[str, Any]]) -> Scored:
    """The harness's own accuracies, with intervals."""
    scores = tuple(tuple(float(r[0]) for r in row["filtered_resps"]) for row in samples)

    def accuracy(metric: str) -> Value | None:
        return share([row[metric] == 1 for row in samples]) if metric in samples[0] else None

    chosen = tuple(max(range(len(s)), key=lambda i: s[i]) for s in scores)
    plain = accuracy("acc")
    assert plain is not None
    return Scored(scores, chosen, plain, accuracy("acc_norm"))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the harness's log and its many progress bars off standard error, and Python's random state as it is."""
    logger = logging.getLogger("lm_eval")
    level, state = logger.level, random.getstate()  # the harness draws names for tasks that it never uses
    logger.setLevel(logging.ERROR)
    try:
        with without_chatter(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
