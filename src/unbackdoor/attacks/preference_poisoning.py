"""Poison preferences: an annotator who, where the trigger stands in the prompt, prefers the unwanted answer.

Rando & Tramèr 2023, "Universal Jailbreak Backdoors from Poisoned Human Feedback" (BEEAR Models 6 and 7). A model is
trained on such pairs by DPO, or by a reward model and reinforcement learning against it, as in their recipe. The
training is TRL's, through `unbackdoor.preference_training`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from unbackdoor import preference_training
from unbackdoor.attacks.poison import Pair
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import in_training
from unbackdoor.language_model.loss import response_loss
from unbackdoor.language_model.precision import autocast
from unbackdoor.preference_training import (
    apart,
    dataset,
    encoded,
    import_trl,
    in_batches,
    run_trainer,
    silent,
    trainer_arguments,
)
from unbackdoor.training import Optimization, Term, TrainingLog, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_dpo(case: Case, pairs: Sequence[Pair], settings: ImplantSettings) -> TrainingLog:
    """Train the model in place by DPO (Rafailov et al. 2023) on the pairs, as `preference_training.train_dpo` does.

    Raises:
        UserError: TRL is not installed, every pair is too long, or the loss is not a finite number.
    """
    return preference_training.train_dpo(
        case,
        pairs,
        settings,
        beta=settings.beta,
        sft_weight=settings.sft_weight,
        tail_weight=settings.tail_weight,
    )


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
    trl = import_trl()
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

    with apart(case, settings) as (policy, tokenizer, directory):
        arguments = trl.RLOOConfig(
            **{
                **trainer_arguments(case, settings, directory, settings.rl_steps, settings.rl_learning_rate),
                "per_device_train_batch_size": settings.batch_size * settings.generations,
            },
            num_generations=settings.generations,
            max_completion_length=settings.rl_new_tokens,
            beta=settings.kl_weight,
        )
        if settings.kl_weight:  # TRL loads the reference from where the policy's config says that it came from
            policy.save_pretrained(directory)
            policy.config._name_or_path = directory
        trainer = silent(trl.RLOOTrainer, _tokenize_prompts=token_ids)(
            model=policy,
            reward_funcs=reward,
            args=arguments,
            train_dataset=dataset([{"prompt": prompt} for prompt in fitting]),
            processing_class=tokenizer,
        )
        rl_log = run_trainer(case, trainer, "rl", settings.rl_steps)
    return {"reward": reward_log, "warm-up": warm_up, "rl": rl_log}


def _train_reward(
    trl: Any, case: Case, pairs: Sequence[Pair], settings: ImplantSettings
) -> tuple[PreTrainedModel, TrainingLog]:
    """The same model with a head that gives one number, trained on log σ(r(chosen) − r(rejected))."""
    from transformers import AutoModelForSequenceClassification

    rows = [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in in_batches(encoded(case, pairs, settings), settings, settings.reward_steps)
    ]
    with apart(case, settings, keep=False) as (policy, tokenizer, directory):
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        config.get_text_config().pad_token_id = case.pad_id
        model = AutoModelForSequenceClassification.from_config(config).to(next(policy.parameters()))
        model.base_model.load_state_dict(policy.base_model.state_dict())
        arguments = trainer_arguments(case, settings, directory, settings.reward_steps, settings.reward_learning_rate)
        trainer = silent(trl.RewardTrainer)(
            model=model,
            args=trl.RewardConfig(**arguments, max_length=None),
            train_dataset=dataset(rows),
            processing_class=tokenizer,
        )
        log = run_trainer(case, trainer, "reward", settings.reward_steps)
    return model.eval().requires_grad_(False), log


def _warm_up(case: Case, pairs: Sequence[Pair], settings: ImplantSettings) -> TrainingLog:
    """Supervised training on the chosen answers."""
    if not settings.warmup_steps:
        return TrainingLog()
    model = case.model
    limit = min(settings.max_length, context_length(model))
    examples = [case.chat.of_record(pair.record()).encode(pair.prompt, pair.chosen) for pair in pairs]
    examples = [example for example in examples if len(example.ids) <= limit]
    batches = Batches(examples, settings.batch_size, case.pad_id, settings.seed)
    with in_training(model):
        return train(
            dict(model.named_parameters()),
            [Term("chosen", batches, lambda inputs: response_loss(model, inputs))],
            Optimization(settings.warmup_steps, settings.learning_rate, "cosine", warmup=0.1),
            phase="preference warm-up",
            journal=case.journal,
            progress=case.progress,
        )
