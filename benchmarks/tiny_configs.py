"""A tiny config of every family of language models that transformers has, made from the names of its settings.

Families call the same sizes by different names. A config's own defaults say which names it has; the tables here say how
small each is made. What does not follow from that stands in `OWN`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCABULARY = 2048
LAYERS = 4


def _named(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, Any] = {
    **_named(VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    **_named(32, "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size attention_hidden_size lru_width"),
    **_named(32, "embed_dim emb_dim"),
    **_named(48, "intermediate_size ffn_dim n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim mlp_hidden_size"),
    **_named(48, "shared_expert_intermediate_size shared_intermediate_size"),
    **_named(16, "moe_intermediate_size expert_ffn_hidden_size expert_hidden_size moe_shared_expert_intermediate_size"),
    **_named(LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers"),
    **_named(4, "n_head num_heads n_heads num_attention_heads decoder_attention_heads encoder_attention_heads"),
    **_named(2, "num_key_value_heads num_kv_heads num_encoder_layers"),
    **_named(8, "head_dim attention_head_dim kv_channels global_head_dim v_head_dim qk_nope_head_dim swa_head_dim"),
    **_named(8, "hidden_size_per_layer_input q_lora_rank kv_lora_rank laurel_rank o_lora_rank"),
    **_named(4, "qk_rope_head_dim rotary_dim"),
    **_named(12, "qk_head_dim"),
    **_named(4, "num_local_experts num_experts n_routed_experts moe_num_experts num_routed_experts"),
    **_named(2, "num_experts_per_tok top_k moe_top_k moe_topk moe_k num_experts_per_token n_activated_experts"),
    **_named(1, "n_group topk_group n_shared_experts num_shared_experts mamba_n_groups mamba_ngroups n_groups"),
    **_named(1, "moe_num_shared_experts first_k_dense_replace zero_expert_num num_dense_layers"),
    **_named(16, "sliding_window attention_window_size local_window_size window_size attention_chunk_size"),
    **_named(16, "sliding_window_size chunk_size mamba_chunk_size state_size mamba_d_state ssm_state_size"),
    **_named(256, "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx seq_length"),
    **_named(256, "max_target_positions"),
    **_named(8, "mamba_n_heads mamba_num_heads mamba_d_head mamba_head_dim n_mamba_heads linear_key_head_dim"),
    **_named(8, "linear_value_head_dim mamba_dt_rank time_step_rank dt_rank"),
    **_named(2, "linear_num_key_heads"),
    **_named(4, "linear_num_value_heads"),
    **_named(0, "num_kv_shared_layers num_nextn_predict_layers mtp_num_layers"),
    **_named(0.15, "initializer_range init_std"),
    "mamba_d_ssm": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

EYES: dict[str, Any] = {
    **_named(32, "hidden_size embed_dim d_model width output_dim projection_dim out_hidden_size vision_output_dim"),
    **_named(32, "projector_input_dim projector_output_dim hidden_dim"),
    **_named(2, "num_hidden_layers depth num_layers layers"),
    **_named(4, "num_attention_heads num_heads heads attention_heads"),
    **_named(3, "num_channels in_channels"),
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 8,
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
}

LATENT_ATTENTION = (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"),
    *("minicpm3", "mistral4", "mistral_large4", "sarvam_mla", "youtu"),
)
TURNED_IN_THREE_AXES = (
    *("glm46v_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text", "glmga_text", "hunyuan_vl_text"),
    *("paddleocr_vl_text", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
)
_LATENT = {"head_dim": 4, "qk_head_dim": 12, "num_key_value_heads": 4}
"""Multi-head latent attention: what the rotation is made for."""
_TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_ALTERNATING = {"layer_types": ["linear_attention", "full_attention"] * 2}
_HYBRID = ["mamba", "hybrid", "mamba", "hybrid"]
OWN: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": _ALTERNATING,
    "kimi_linear": _ALTERNATING | _LATENT,
    "bailing_hybrid": {"layer_group_size": 2} | _LATENT,
    **dict.fromkeys(LATENT_ATTENTION, _LATENT),
    **dict.fromkeys(TURNED_IN_THREE_AXES, _TURNED),
    "qwen3_vl_moe_text": _TURNED | {"sliding_window": None},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "attn_layers": ["local"] * 4, "axial_pos_embds": False},
    "zamba": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family asks for beyond its sizes."""


def families() -> list[str]:
    """Every model type that is loaded for text, alone or with images."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def settings_of(cls: type[PreTrainedConfig], within: str = "") -> dict[str, Any]:
    """Small values for all of a config's settings whose names are known, and for its parts."""
    try:
        defaults: PreTrainedConfig | None = cls()
        known = set(cls().to_dict())
    except Exception:  # some configs have no defaults of their own
        defaults, known = None, set(getattr(cls, "__annotations__", {}))
    known |= set(getattr(cls, "__dataclass_fields__", {}))
    text = not within or any(word in within for word in ("text", "decoder", "language", "llm"))
    renamed = getattr(cls, "attribute_map", {})
    found = {k: v for k, v in (SIZES if text else EYES).items() if k in known and k not in renamed}
    for part in cls.sub_configs:
        inner = getattr(defaults, part, None)
        if inner is not None:
            found[part] = settings_of(type(inner), part) | OWN.get(inner.model_type, {})
    return found


def tiny_model(family: str) -> Any:
    """A random model of the family, in evaluation mode."""
    cls = CONFIG_MAPPING[family]
    config = cls(**{**settings_of(cls), **OWN.get(family, {})})
    auto: Any = (
        AutoModelForImageTextToText if family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else AutoModelForCausalLM
    )
    torch.manual_seed(0)
    return auto.from_config(config).float().eval()
