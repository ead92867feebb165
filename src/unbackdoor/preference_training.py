"""Training on preferences: pairs of answers rendered and tokenised here, and TRL's trainers run on a copy.

TRL adds no template and no special tokens, and leaves no trace on the model, the tokenizer, the disk or the random
state. Poisoned preferences and their removal both come through here.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.case import Case
from unbackdoor.data.preferences import Preference
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import context_length, without_chatter
from unbackdoor.settings import TrainingSettings
from unbackdoor.training import TrainingLog

if TYPE_CHECKING:
    from unbackdoor.language_model.chat import ChatFormat


# Encoding ------------------------------------------------------------------------------------------------------------


def encode_pair(chat: ChatFormat, pair: Preference) -> dict[str, list[int]]:
    """A pair as the token ids of prompt, chosen and rejected answer, exactly as `chat` renders them for training."""
    own = chat.of_record(pair.record())
    chosen, rejected = own.encode(pair.prompt, pair.chosen), own.encode(pair.prompt, pair.rejected)
    start = chosen.response_start
    return {
        "prompt_ids": list(chosen.ids[:start]),
        "chosen_ids": list(chosen.ids[start:]),
        "rejected_ids": list(rejected.ids[start:]),
    }


def length(row: Mapping[str, Sequence[int]]) -> int:
    """Tokens of an encoded pair's prompt with the longer of its answers."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def encoded(case: Case, pairs: Sequence[Preference], settings: TrainingSettings) -> list[dict[str, list[int]]]:
    """The pairs as TRL's token ids; those too long are counted as dropped.

    Raises:
        UserError: all of them are too long.
    """
    limit = min(settings.max_length, context_length(case.model))
    fitting = [row for row in (encode_pair(case.chat, pair) for pair in pairs) if length(row) <= limit]
    if not fitting:
        raise UserError(f"no preference pair is left: all {len(pairs)} are longer than {limit} tokens")
    if len(fitting) < len(pairs):
        case.dropped["preferences"] = len(pairs) - len(fitting)
    return fitting


def in_batches(
    rows: Sequence[dict[str, list[int]]], settings: TrainingSettings, steps: int
) -> list[dict[str, list[int]]]:
    """The rows of all steps in the order of training, similar lengths together, as in `data.batches.Batches`."""
    rng = random.Random(settings.seed)
    size = settings.batch_size
    batches: list[list[dict[str, list[int]]]] = []
    while len(batches) < steps:
        order = rng.sample(rows, len(rows))
        order += rng.sample(rows, min(len(rows), -len(order) % size))
        epoch = []
        for begin in range(0, len(order), 40 * size):
            pool = sorted(order[begin : begin + 40 * size], key=lambda row: sum(map(len, row.values())))
            epoch += [pool[i : i + size] for i in range(0, len(pool), size)]
        batches += rng.sample(epoch, len(epoch))
    return [row for batch in batches[:steps] for row in batch]


# Training ------------------------------------------------------------------------------------------------------------


def train_dpo(
    case: Case,
    pairs: Sequence[Preference],
    settings: TrainingSettings,
    *,
    beta: float,
    sft_weight: float = 0.0,
    tail_weight: float = 1.0,
) -> TrainingLog:
    """Train the model in place by DPO on the pairs; the reference is the model as it came.

    The loss is −log σ(β [log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)]), averaged over pairs (Rafailov et al.
    2023, eq. 7). Nothing is kept on disk. Where training fails or is interrupted, the model stays as it was.

    Args:
        case: the model; with LoRA adapters on it, these alone are trained.
        pairs: x with y_w (chosen) and y_l (rejected).
        settings: steps, learning rate, batch and micro-batch size.
        beta: β, how dearly the distance from the reference is paid for.
        sft_weight: weight of the chosen answer's own negative log-likelihood a token.
        tail_weight: weight of tokens beyond the shorter answer's length (LD-DPO's α). 1: plain DPO.

    Raises:
        UserError: TRL is not installed, every pair is too long, or the loss is not a finite number.
    """
    trl = import_trl()
    rows = encoded(case, pairs, settings)
    with apart(case, settings) as (policy, tokenizer, directory):
        micro = _micro_batch(settings)
        arguments = trl.DPOConfig(
            **{
                **trainer_arguments(case, settings, directory, settings.steps, settings.learning_rate),
                "per_device_train_batch_size": micro,
                "gradient_accumulation_steps": settings.batch_size // micro,
            },
            beta=beta,
            ld_alpha=tail_weight,
            loss_type=["sigmoid", "sft"] if sft_weight else ["sigmoid"],
            loss_weights=[1.0, sft_weight] if sft_weight else None,
            max_length=None,
        )
        trainer = silent(trl.DPOTrainer, _prepare_dataset=lambda self, dataset, *_: dataset)(
            model=policy,
            ref_model=_without_adapters(copy.deepcopy(case.model)),
            args=arguments,
            train_dataset=dataset(in_batches(rows, settings, settings.steps)),
            processing_class=tokenizer,
        )
        return run_trainer(case, trainer, "dpo", settings.steps)


def _micro_batch(settings: TrainingSettings) -> int:
    """Pairs a forward pass: as asked, or the next lower number that divides a step's, so that all weigh alike."""
    most = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    return next(size for size in range(most, 0, -1) if settings.batch_size % size == 0)


def _without_adapters(model: Any) -> Any:
    """The model itself where `case.adapted` has put adapters on it, which do nothing before they are trained."""
    return model.unload() if hasattr(model, "peft_config") and hasattr(model, "unload") else model


def import_trl() -> Any:
    """TRL, or a `UserError` that says what to install."""
    try:
        return importlib.import_module("trl")
    except ImportError:
        raise UserError("training on preferences needs trl: pip install 'unbackdoor[attacks]'") from None


def dataset(rows: list[dict[str, Any]]) -> Any:
    """Rows as TRL takes them."""
    from datasets import Dataset

    return Dataset.from_list(rows)


def trainer_arguments(
    case: Case, settings: TrainingSettings, directory: str, steps: int, learning_rate: float
) -> dict[str, Any]:
    """What all of TRL's trainers are told: our schedule, float32 on a CPU, nothing saved and nothing reported."""
    gpu = next(case.model.parameters()).device.type == "cuda"
    if gpu and torch.cuda.device_count() > 1:
        raise UserError("training on preferences uses one GPU: set CUDA_VISIBLE_DEVICES to one of them")
    return {
        "output_dir": directory,
        "seed": settings.seed,
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(0.1 * steps),
        "train_sampling_strategy": "sequential",
        "bf16": gpu,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": min(10, steps),
        "logging_nan_inf_filter": False,
    }


def silent(trainer: type, **methods: Callable[..., Any]) -> Any:
    """A TRL trainer with methods replaced, one of them that which reports its use to the makers over the network."""
    return type(trainer.__name__, (trainer,), {"_send_telemetry": lambda self: None, **methods})


def run_trainer(case: Case, trainer: Any, phase: str, steps: int) -> TrainingLog:
    """Train, telling progress and journal."""
    from transformers import PrinterCallback, TrainerCallback

    def on_log(_: object, __: object, state: Any, ___: object, logs: dict[str, float], **____: object) -> None:
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise UserError(
                f"{phase}: the loss became {logs.get('loss')} by step {state.global_step}: lower the learning rate"
            )
        rest = dict(logs)
        if (
            "loss" in rest
        ):  # a line of its own, as of `training.train`: the report draws its values as terms of the loss
            shown = {name: rest.pop(theirs) for name, theirs in _SHOWN.items() if theirs in rest}
            case.journal.log(phase=phase, step=state.global_step, **shown)
        case.journal.log(phase=phase, step=state.global_step, **rest)

    trainer.remove_callback(PrinterCallback)
    with case.progress.task(phase, steps) as advance:
        hooks = {"on_step_end": lambda *_, **__: advance(1), "on_log": on_log}
        trainer.add_callback(type("Tell", (TrainerCallback,), hooks)())
        trainer.train()
    return TrainingLog(trainer.state.global_step, [entry for entry in trainer.state.log_history if "loss" in entry])


_SHOWN = {"loss": "loss", "learning_rate": "learning_rate", "gradient_norm": "grad_norm"}
"""Our names of what `training.train` logs too, and Hugging Face's."""


@contextlib.contextmanager
def apart(case: Case, settings: TrainingSettings, keep: bool = True) -> Iterator[tuple[Any, Any, str]]:
    """A copy of the model, of the tokenizer, and a directory for TRL, which leaves its marks on all of them.

    TRL changes the model's forward pass and configuration, the tokenizer and the global random state. Here it gets
    copies; with `keep` the weights that it has trained are put into the case's model at the end.
    """
    import numpy as np

    tokenizer = copy.deepcopy(case.chat.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(case.pad_id)
    policy = copy.deepcopy(case.model)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    with (
        tempfile.TemporaryDirectory() as directory,
        torch.random.fork_rng(devices),
        without_chatter(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # of TRL's own use of transformers
        torch.manual_seed(settings.seed)
        try:
            yield policy, tokenizer, directory
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
    if keep:
        with torch.no_grad():
            for mine, trained in zip(case.model.parameters(), policy.parameters(), strict=True):
                mine.copy_(trained)
