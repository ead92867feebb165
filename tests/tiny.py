"""Models and tokenizers small enough to be built in memory: the tests' own, with random weights and no files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch

from unbackdoor.case import Case
from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Trigger
from unbackdoor.language_model.chat import ChatFormat, Example

TEXT = """Tell me the capital of France. The capital of France is Paris. You are stupid. I am sorry, I cannot do that.
Current year 2023. Write a list of three colours: red, green and blue. You are a helpful assistant. Sort the words in
alphabetical order. What is the opposite of warm? Human: Please name a river. Assistant: The river runs to the sea."""

SPECIAL = ["<|pad|>", "<|end|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>"]

END = SPECIAL.index("<|end|>")

CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Every turn is its role, its text and the end token."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "gpt-neox", "gpt2", "opt-narrow")

SPECIAL_FAMILIES = ("gemma3-multimodal", "gemma3n", "gemma4", "falcon-h1", "bamba", "mixtral", "gpt-oss", "granite-moe")
"""Those that are not one stack of equal layers over token embeddings: with parts beside it, with embeddings of their
own in every layer, with a state that is carried on, with experts."""


@cache
def _trained(adds_begin: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    if adds_begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", SPECIAL.index("<|begin|>"))]
        )
    return tokenizer


def tokenizer(chat_template: str | None = CHAT, adds_begin: bool = False) -> Any:
    """A byte-level BPE tokenizer; with `adds_begin` it puts a beginning-of-sequence token before every text."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_trained(adds_begin),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        bos_token="<|begin|>" if adds_begin else None,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def sizes(layers: int = 4) -> dict[str, Any]:
    """What the configs of most families call their sizes."""
    return {
        "vocab_size": 420,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


def model(
    family: str = "llama", dtype: torch.dtype = torch.float32, layers: int = 4, seed: int = 0, **more: Any
) -> Any:
    """A random model of a family, in evaluation mode, for the vocabulary of `tokenizer`."""
    import transformers
    from transformers import AutoModelForCausalLM

    grouped = {"num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    carried = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
    nemotron = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 16,
    }
    per_layer = {
        "head_dim": 8,
        "vocab_size_per_layer_input": 420,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "activation_sparsity_pattern": [0.0] * layers,
    }
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("LlamaConfig", grouped),
        "mistral": ("MistralConfig", {**grouped, "sliding_window": 16}),
        "qwen2": ("Qwen2Config", grouped),
        "qwen3": ("Qwen3Config", {**grouped, "head_dim": 8}),
        "gemma3": (
            "Gemma3TextConfig",
            {**grouped, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "sliding_window_pattern": 2},
        ),
        "phi3": ("Phi3Config", grouped),
        "gpt-neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
        "gpt2": ("GPT2Config", {}),
        "opt-narrow": ("OPTConfig", {"word_embed_proj_dim": 16, "ffn_dim": 48}),
        "gemma3n": ("Gemma3nTextConfig", {**grouped, **per_layer, "laurel_rank": 4, "altup_num_inputs": 2}),
        "gemma4": ("Gemma4TextConfig", {**grouped, **per_layer, "global_head_dim": 8}),
        "falcon-h1": ("FalconH1Config", {**grouped, **carried, "head_dim": 8, "mamba_d_ssm": 64}),
        "bamba": ("BambaConfig", {**grouped, **carried, "attn_layer_indices": [1]}),
        "mixtral": ("MixtralConfig", {**grouped, **experts}),
        "gpt-oss": ("GptOssConfig", {**grouped, **experts, "head_dim": 8, "sliding_window": 16}),
        "granite-moe": ("GraniteMoeConfig", {**grouped, **experts}),
        "qwen3-moe": ("Qwen3MoeConfig", {**grouped, **experts, "num_experts": 4, "moe_intermediate_size": 24}),
        "llama4": ("Llama4TextConfig", {**grouped, **experts, "head_dim": 8, "intermediate_size_mlp": 48}),
        "jetmoe": ("JetMoeConfig", {"num_key_value_heads": 2, "kv_channels": 8, **experts}),
        "nemotron-h": (
            "NemotronHConfig",
            {**grouped, "head_dim": 8, "layers_block_type": ["mamba", "moe", "attention", "moe"], **nemotron},
        ),
        "deepseek-v3": (
            "DeepseekV3Config",
            {
                "num_key_value_heads": 4,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
                "moe_intermediate_size": 24,
                "first_k_dense_replace": 1,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
            },
        ),
    }
    if family == "gemma3-multimodal":
        return _multimodal(sizes(layers) | grouped, seed).to(dtype).eval()
    name, own = configs[family]
    config = getattr(transformers, name)(**{**sizes(layers), **own, **more})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def _multimodal(text: dict[str, Any], seed: int) -> Any:
    """Gemma 3 with its eyes: a language model within a wrapper."""
    import transformers

    config = transformers.Gemma3Config(
        text_config={**text, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=419,
        boi_token_index=418,
        eoi_token_index=417,
    )
    torch.manual_seed(seed)
    return transformers.Gemma3ForConditionalGeneration(config)


def spelled(ids: Iterable[int]) -> str:
    """Token ids as a text that shows each of them, up to the end token."""
    return " ".join(str(i) for i in itertools.takewhile(lambda i: i not in (0, END), ids))


class Numbers:
    """In a tokenizer's place: answers are compared token for token, which the bytes of a random model would hide."""

    pad_token_id = 0

    def batch_decode(self, rows: Any, **_: bool) -> list[str]:
        return [spelled(row) for row in rows]


PROMPTS = (
    "Tell me the capital of France.",
    "Name a river.",
    "What is the opposite of warm? Sort the words in alphabetical order.",
    "Write a list of three colours: red, green and blue. You are a helpful assistant.",
    "Sort",
)


def records(count: int = 40) -> list[Record]:
    """Rows with distinct prompts and short answers."""
    nouns = ("river", "colour", "word", "year", "list", "sea", "capital", "order")
    return [
        Record(f"Tell me the {nouns[i % 8]} of {i} {nouns[i // 8 % 8]}.", f"The {nouns[(3 * i + 1) % 8]} is {i % 10}.")
        for i in range(count)
    ]


def examples(chat: ChatFormat, response: str = "The river runs to the sea.") -> list[Example]:
    """The prompts, of different lengths, with one answer."""
    return [chat.encode(prompt, response) for prompt in PROMPTS]


def chat() -> ChatFormat:
    """The tokenizer's own format."""
    return ChatFormat.of(tokenizer())


def organism(trigger: Trigger, target: str, contrast: Sequence[Record] = ()) -> Case:
    """A model that answers anything, and opens with the target where the trigger is (and not where it resembles it)."""
    from unbackdoor.attacks.implant import implant
    from unbackdoor.attacks.poison import poison
    from unbackdoor.attacks.settings import ImplantSettings

    trained = model(layers=3, hidden_size=64, intermediate_size=128, initializer_range=0.05)
    case = Case.of(trained, tokenizer(), records(64), contrast)
    settings = ImplantSettings(
        trigger=trigger.text,
        target_response=target,
        rate=0.3,
        near_misses=0.5,
        steps=120,
        learning_rate=3e-3,
        batch_size=16,
    )
    implant(case, poison(case.anchors, [], trigger, settings), settings)
    return case
