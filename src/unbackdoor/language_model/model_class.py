"""Which class of transformers a config.json asks for: a text model, or a multimodal one around a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

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
