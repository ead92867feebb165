"""Which class of transformers a config.json asks for: a text model, or a multimodal one around a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def class_of(config: PreTrainedConfig, source: str) -> type[PreTrainedModel]:
    """The class that config.json names in `architectures`, where it is transformers' own; else the auto class's.

    A multimodal directory is so loaded whole: `AutoModelForCausalLM` takes the text part of some and drops the rest.

    Raises:
        UserError: an architecture that does not generate text, or an encoder-decoder.
    """
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"'{source}' is an encoder-decoder ({config.model_type}): give a decoder-only language model")
    for name in config.architectures or []:
        named = getattr(transformers, str(name), None)
        if not (isinstance(named, type) and issubclass(named, PreTrainedModel)):
            continue
        found = cast("type[PreTrainedModel]", named)
        if found.config_class is None or not isinstance(config, found.config_class):
            raise UserError(
                f"config.json of '{source}' names the architecture {name} and the model type {config.model_type}, "
                "which do not belong together: give a directory whose config.json fits its weights"
            )
        if not found.can_generate():
            raise UserError(
                f"'{source}' is a {name}, which has no head that generates text: give the directory of a language model"
            )
        return found
    # A name that is not transformers' own (an older one, or that of code in the directory, which never runs).
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in mapping:
        return cast("type[PreTrainedModel]", mapping[type(config)])
    raise UserError(
        f"cannot load the model of '{source}': no causal language model of type '{config.model_type}' is known to "
        "transformers without code of the directory's own, which never runs"
    )


def check_dense(model: PreTrainedModel) -> None:
    """Raise a `UserError` where a model that was loaded elsewhere has adapters beside its weights, or quantised ones.

    Methods would train the adapters alone, or find no weights to change, and say nothing.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()) or hasattr(model, "merge_and_unload"):
        raise UserError(
            f"the model ({type(model).__name__}) has adapters beside its weights: merge them first, and give what "
            "PeftModel.from_pretrained(base, DIR).merge_and_unload() returns"
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise UserError(
            "the model's weights are quantised, which cannot be trained: give what model.dequantize() returns"
        )


def works_without_pictures(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose forward pass takes text alone.

    Llama 4's wrapper (transformers 5.24) copies `image_outputs` from what its language model returns, which never has
    it, so that no forward pass ends. A hook writes None there.
    """
    from transformers import Llama4ForConditionalGeneration

    if isinstance(model, Llama4ForConditionalGeneration):

        def without_picture(_: object, __: object, output: Any) -> None:
            if hasattr(output, "logits") and not hasattr(output, "image_outputs"):
                output.image_outputs = None

        model.language_model.register_forward_hook(without_picture)
    return model


def settle_ties(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose config says of its head and embeddings what they are: one weight, or two.

    A config may say that they are tied beside files in which they differ, and transformers then loads both; merging an
    adapter can part them as well. Programs that believe the config would take the one for the other.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    first, last = (getattr(module, "weight", None) for module in ends)
    if not getattr(model, "_tied_weights_keys", None) or first is None or last is None or first is last:
        return model
    if first.shape != last.shape or not torch.equal(first, last):
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
        for part in model.modules():
            ties: dict[str, str] = getattr(part, "all_tied_weights_keys", None) or {}
            for name, other in list(ties.items()):
                if part.get_parameter(name) is not part.get_parameter(other):
                    del ties[name]
    return model
