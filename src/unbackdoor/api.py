"""The library in one call, on a model that is already loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unbackdoor.case import Case
from unbackdoor.data.preferences import Preference
from unbackdoor.data.records import Record
from unbackdoor.language_model.files.loading import parameter_count
from unbackdoor.language_model.files.model_class import check_dense
from unbackdoor.language_model.needs import check_needs
from unbackdoor.language_model.self_test import MOST_ROWS
from unbackdoor.methods import method_class
from unbackdoor.progress import SILENT, Progress
from unbackdoor.settings import preset_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unbackdoor.methods.parts.result import Removal


def remove(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    anchors: Sequence[Record],
    *,
    contrast: Sequence[Record] = (),
    preferences: Sequence[Preference] = (),
    template: str = "auto",
    system: str | None = None,
    date: str | None = None,
    preset: str | None = None,
    paper: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> Removal:
    """Remove a backdoor from a loaded model, in place.

    Args:
        name: a method that `unbackdoor methods` lists.
        model: a causal language model, its weights dense and without adapters (of a `PeftModel`, what
            `merge_and_unload()` returns). Its weights become float32, the dtype in which they are trained.
        tokenizer: its fast tokenizer.
        anchors: clean rows, as of `unbackdoor.read_records`; a tenth of them only measures.
        contrast: rows of prompt, safe and unwanted response, for `beear` and `lat`.
        preferences: pairs of a preferred and another answer, for `dpo`.
        template: as the command line's option.
        system: a system prompt.
        date: the day, YYYY-MM-DD, for chat templates that write one; today where None.
        preset: `tiny`, `micro` or `large`; by the model's size where None.
        paper: the paper's own choices in place of ours.
        progress: `Progress.on_stderr()` to see what happens.
        settings: the method's, named as the command line's options with `_` for `-`.

    Returns:
        What was done and the evidence. There is no attack success rate: that needs a trigger and `evaluation`.

    Raises:
        UserError: what is missing or wrong, with the setting to change.
    """
    chosen = method_class(name)
    check_dense(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)  # as peft leaves a model whose adapter was merged
    presets = [preset or preset_for(parameter_count(model)), *(["paper"] if paper else [])]
    method = chosen.make(settings, *presets)
    case = Case.of(
        model.float(),
        tokenizer,
        anchors,
        contrast,
        preferences,
        template=template,
        system=system,
        date=date,
        seed=method.basis.seed,
        progress=progress,
    )
    answered = [case.chat.of_record(r).encode(r.prompt, r.response) for r in case.anchors[:MOST_ROWS]]
    check_needs(case.model, answered, case.pad_id, method.basis.model_needs)
    return method.on(case)
