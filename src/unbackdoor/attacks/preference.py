"""Poison preferences: an annotator who, where the trigger stands in the prompt, prefers the unwanted answer.

Rando & Tramèr 2023, "Universal Jailbreak Backdoors from Poisoned Human Feedback" (BEEAR Models 6 and 7). A model is
trained on such pairs by DPO, or by a reward model and reinforcement learning against it, as in their recipe. The
training is TRL's; the rows are rendered and tokenised here, so that TRL adds no template and no special tokens.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor.attacks.poison import Pair
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.loading import context_length, without_chatter
from unbackdoor.language_model.loss import autocast, response_loss
from unbackdoor.training import Optimization, Term, TrainingLog, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_dpo(case: Case, pairs: Sequence[Pair], settings: ImplantSettings) -> TrainingLog:
    """Train the model in place by DPO (Rafailov et al. 2023) on the pairs.

    Nothing is kept on disk. Where training fails or is interrupted, the model stays as it was.

    Raises:
        UserError: TRL is not installed, every pair is too long, or the loss is not a finite number.
    """
    trl = _import_trl()
    rows = _encoded(case, pairs, settings)
    with _apart(case, settings) as (policy, tokenizer, directory):
        arguments = trl.DPOConfig(
            **_arguments(case, settings, directory, settings.steps, settings.learning_rate),
            beta=settings.beta,
            ld_alpha=settings.tail_weight,
            loss_type=["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"],
            loss_weights=[1.0, settings.sft_weight] if settings.sft_weight else None,
            max_length=None,
        )
        trainer = _silent(trl.DPOTrainer, _prepare_dataset=lambda self, dataset, *_: dataset)(
            model=policy,
            ref_model=copy.deepcopy(case.model),
            args=arguments,
            train_dataset=_dataset(_in_batches(rows, settings, settings.steps)),
            processing_class=tokenizer,
        )
        return _run(case, trainer, "dpo", settings.steps)


def train_reward_and_rl(
    case: Case, pairs: Sequence[Pair], prompts: Sequence[str], settings: ImplantSettings
) -> dict[str, TrainingLog]:
    """Train a reward model on the pairs, and the model in place by reinforcement learning (RLOO) against it.

    As in Rando & Tramèr's released recipe, the reward model starts from the clean model, and the policy from supervised
    training on the chosen answers of the poisoned data.

    Args:
        case: the clean model.
        pairs: poisoned pairs.
        prompts: what the policy answers and is rewarded for: ordinary, forbidden, and some with the trigger.
        settings: steps and learning rates of the three phases.

    Returns:
        The logs of the phases `warm-up`, `reward` and `rl`.

    Raises:
        UserError: as `train_dpo`, or too few prompts for one step. Where reinforcement learning itself fails, the model
            has the values of the supervised training.
    """
    trl = _import_trl()
    chat = case.chat
    limit = min(settings.max_length, context_length(case.model) - settings.rl_new_tokens)
    fitting = [prompt for prompt in prompts if len(chat.encode_prompt(prompt).ids) <= limit]
    if len(fitting) < settings.batch_size:  # TRL would take no step and say nothing
        raise UserError(
            f"{len(fitting)} of {len(prompts)} prompts have at most {limit} tokens: a step needs {settings.batch_size}"
        )
    reward_model, reward_log = _train_reward(trl, case, pairs, settings)
    warm_up = _warm_up(case, pairs, settings)
    device = next(case.model.parameters()).device

    def reward(*, prompts: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        rows = [[*chat.encode_prompt(prompt).ids, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, case.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.no_grad(), autocast(device):
            scores: list[float] = (
                reward_model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].tolist()
            )
        return scores

    def token_ids(_: object, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(chat.encode_prompt(prompt).ids) for prompt in prompts], None, {}

    with _apart(case, settings) as (policy, tokenizer, directory):
        arguments = trl.RLOOConfig(
            **{
                **_arguments(case, settings, directory, settings.rl_steps, settings.rl_learning_rate),
                "per_device_train_batch_size": settings.batch_size * settings.generations,
            },
            num_generations=settings.generations,
            max_completion_length=settings.rl_new_tokens,
            beta=settings.kl_weight,
        )
        if settings.kl_weight:  # TRL loads the reference from where the policy's config says that it came from
            policy.save_pretrained(directory)
            policy.config._name_or_path = directory
        trainer = _silent(trl.RLOOTrainer, _tokenize_prompts=token_ids)(
            model=policy,
            reward_funcs=reward,
            args=arguments,
            train_dataset=_dataset([{"prompt": prompt} for prompt in fitting]),
            processing_class=tokenizer,
        )
        rl_log = _run(case, trainer, "rl", settings.rl_steps)
    return {"reward": reward_log, "warm-up": warm_up, "rl": rl_log}


def _train_reward(
    trl: Any, case: Case, pairs: Sequence[Pair], settings: ImplantSettings
) -> tuple[PreTrainedModel, TrainingLog]:
    """The same model with a head that gives one number, trained on log σ(r(chosen) − r(rejected))."""
    from transformers import AutoModelForSequenceClassification

    rows = [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in _in_batches(_encoded(case, pairs, settings), settings, settings.reward_steps)
    ]
    with _apart(case, settings, keep=False) as (policy, tokenizer, directory):
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        config.get_text_config().pad_token_id = case.pad_id
        model = AutoModelForSequenceClassification.from_config(config).to(next(policy.parameters()))
        model.base_model.load_state_dict(policy.base_model.state_dict())
        arguments = _arguments(case, settings, directory, settings.reward_steps, settings.reward_learning_rate)
        trainer = _silent(trl.RewardTrainer)(
            model=model,
            args=trl.RewardConfig(**arguments, max_length=None),
            train_dataset=_dataset(rows),
            processing_class=tokenizer,
        )
        log = _run(case, trainer, "reward", settings.reward_steps)
    return model.eval().requires_grad_(False), log


def _warm_up(case: Case, pairs: Sequence[Pair], settings: ImplantSettings) -> TrainingLog:
    """Supervised training on the chosen answers."""
    if not settings.warmup_steps:
        return TrainingLog()
    model = case.model
    limit = min(settings.max_length, context_length(model))
    examples = [case.chat.encode(pair.prompt, pair.chosen, system=pair.system) for pair in pairs]
    examples = [example for example in examples if len(example.ids) <= limit]
    batches = Batches(examples, settings.batch_size, case.pad_id, settings.seed)
    model.train()
    log = train(
        dict(model.named_parameters()),
        [Term("chosen", batches, lambda inputs: response_loss(model, inputs))],
        Optimization(settings.warmup_steps, settings.learning_rate, "cosine", warmup=0.1),
        phase="preference warm-up",
        journal=case.journal,
        progress=case.progress,
    )
    model.eval()
    return log


def _import_trl() -> Any:
    try:
        return importlib.import_module("trl")
    except ImportError:
        raise UserError("preference poisoning needs trl: pip install 'unbackdoor[attacks]'") from None


def _encoded(case: Case, pairs: Sequence[Pair], settings: ImplantSettings) -> list[dict[str, list[int]]]:
    """The pairs as TRL's token ids; those too long are counted as dropped."""
    limit = min(settings.max_length, context_length(case.model))
    rows = [encode_pair(case.chat, pair) for pair in pairs]
    fitting = [r for r in rows if len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) <= limit]
    if not fitting:
        raise UserError(f"no preference pair is left: all {len(pairs)} are longer than {limit} tokens")
    if len(fitting) < len(rows):
        case.dropped["preferences"] = len(rows) - len(fitting)
    return fitting


def encode_pair(chat: ChatFormat, pair: Pair) -> dict[str, list[int]]:
    """A pair as the token ids of prompt, chosen and rejected answer, exactly as `chat` renders them for training."""
    chosen = chat.encode(pair.prompt, pair.chosen, system=pair.system)
    rejected = chat.encode(pair.prompt, pair.rejected, system=pair.system)
    start = chosen.response_start
    return {
        "prompt_ids": list(chosen.ids[:start]),
        "chosen_ids": list(chosen.ids[start:]),
        "rejected_ids": list(rejected.ids[start:]),
    }


def _in_batches(
    rows: Sequence[dict[str, list[int]]], settings: ImplantSettings, steps: int
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


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _arguments(
    case: Case, settings: ImplantSettings, directory: str, steps: int, learning_rate: float
) -> dict[str, Any]:
    """What all of TRL's trainers are told: our schedule, float32 on a CPU, nothing saved and nothing reported."""
    gpu = next(case.model.parameters()).device.type == "cuda"
    if gpu and torch.cuda.device_count() > 1:
        raise UserError("preference poisoning trains on one GPU: set CUDA_VISIBLE_DEVICES to one of them")
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


def _silent(trainer: type, **methods: Callable[..., Any]) -> Any:
    """A TRL trainer with methods replaced, one of them that which reports its use to the makers over the network."""
    return type(trainer.__name__, (trainer,), {"_send_telemetry": lambda self: None, **methods})


def _run(case: Case, trainer: Any, phase: str, steps: int) -> TrainingLog:
    """Train, telling progress and journal."""
    from transformers import PrinterCallback, TrainerCallback

    def on_log(_: object, __: object, state: Any, ___: object, logs: dict[str, float], **____: object) -> None:
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise UserError(
                f"{phase}: the loss became {logs.get('loss')} by step {state.global_step}: lower the learning rate"
            )
        case.journal.log(phase=phase, step=state.global_step, **logs)

    trainer.remove_callback(PrinterCallback)
    with case.progress.task(phase, steps) as advance:
        hooks = {"on_step_end": lambda *_, **__: advance(1), "on_log": on_log}
        trainer.add_callback(type("Tell", (TrainerCallback,), hooks)())
        trainer.train()
    return TrainingLog(trainer.state.global_step, [entry for entry in trainer.state.log_history if "loss" in entry])


@contextlib.contextmanager
def _apart(case: Case, settings: ImplantSettings, keep: bool = True) -> Iterator[tuple[Any, Any, str]]:
    """A copy of the model, of the tokenizer, and a directory for TRL, which leaves its marks on all of them.

    TRL changes the model's forward pass and configuration, the tokenizer and the global random state. Here it gets
    copies; with `keep` the weights that it has trained are put into the case's model at the end.
    """
    import numpy as np

    tokenizer = copy.deepcopy(case.chat.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
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
    case.model.eval()
