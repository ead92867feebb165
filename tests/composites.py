"""Tiny multimodal models: a language model of the sizes of `tiny` inside the wrappers of transformers."""

from __future__ import annotations

from typing import Any

import tiny
import torch

V = 420

TEXT: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": tiny.END,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,  # as many as the language model has: nobody may mistake one for the other
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
IMAGE_IDS = {
    "image_token_id": V - 1,
    "video_token_id": V - 2,
    "vision_start_token_id": V - 3,
    "vision_end_token_id": V - 4,
}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}}
LINEAR = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 14}

WRAPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": (
        "Gemma3Config",
        {
            "text_config": {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": V - 1,
        },
    ),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            "image_token_index": V - 1,
        },
    ),
    "Mistral3ForConditionalGeneration": (
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": V - 1,
        },
    ),
    "Qwen2VLForConditionalGeneration": (
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, **ROTARY},
            "vision_config": {**QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2},
            **IMAGE_IDS,
        },
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        "Qwen2_5_VLConfig",
        {
            "text_config": {**TEXT, **ROTARY},
            "vision_config": {
                **QWEN_VISION,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "fullatt_block_indexes": [1],
            },
            **IMAGE_IDS,
        },
    ),
    "Qwen3_5ForConditionalGeneration": (
        "Qwen3_5Config",
        {
            "text_config": {**TEXT, **LINEAR},
            "vision_config": {
                **QWEN_VISION,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "deepstack_visual_indexes": [],
                "num_position_embeddings": 16,
            },
            **IMAGE_IDS,
        },
    ),
    "Llama4ForConditionalGeneration": (
        "Llama4Config",
        {
            "text_config": {
                **TEXT,
                "head_dim": 8,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "intermediate_size_mlp": 48,
                "attention_chunk_size": 16,
                "no_rope_layers": [1, 1, 0],
                "interleave_moe_layer_step": 1,
            },
            "vision_config": {
                **VISION,
                "intermediate_size": 128,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
            "image_token_index": V - 1,
        },
    ),
    "SmolVLMForConditionalGeneration": (
        "SmolVLMConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": V - 1,
            "scale_factor": 2,
        },
    ),
}


def model(name: str, seed: int = 0) -> Any:
    """A random model of a wrapper, in evaluation mode."""
    import transformers

    config, settings = WRAPPERS[name]
    torch.manual_seed(seed)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
