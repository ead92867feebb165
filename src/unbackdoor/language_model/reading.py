"""How models that are compared are read: with one tokenizer and one template, whosever weights they are.

The files beside the weights can make the same weights look cleansed: a tokenizer that drops the target, a decoder that
rewrites it, a template that takes the trigger out. So a model after a removal is never read by its own files, but by
the suspect's, or by those of a directory that is trusted (`--tokenizer-from`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.endings import ids_in_files
from unbackdoor.language_model.files import generation_settings
from unbackdoor.language_model.files.checked_files import read_json
from unbackdoor.language_model.files.loading import load_tokenizer
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.layers import embedding_matrix
from unbackdoor.language_model.tokenizer_loading import load_tokenizer_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """Whose tokenizer and template every model is read with.

    Args:
        suspect: the model whose own files are used where no others are trusted.
        base: of an adapter, the model that it was trained on.
        tokenizer_from: a directory with a tokenizer and a template that are trusted.
    """

    suspect: str
    base: str | None = None
    tokenizer_from: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one tokenizer, with its template."""
        if self.tokenizer_from is not None:
            return load_tokenizer_from(self.tokenizer_from)
        return load_tokenizer(self.suspect, self.base)

    def tokenizer_for(
        self, model: PreTrainedModel, source: str, never_backdoored: bool = False
    ) -> tuple[PreTrainedTokenizerBase, bool]:
        """The tokenizer that this model is read with, and whether it has to be its own.

        That is so only where its vocabulary is too small for the one tokenizer: then the two were not read in one way,
        and no removal can be read off them. A model that was never backdoored may have another vocabulary, too: it
        hides nothing.

        Raises:
            UserError: the trusted tokenizer does not fit the suspect itself.
        """
        tokenizer = self.tokenizer()
        rows = len(embedding_matrix(model))
        if never_backdoored and source != self.suspect:
            own = load_tokenizer(source, self.base)
            return (own, True) if own.get_vocab() != tokenizer.get_vocab() else (tokenizer, False)
        if tokenizer.vocab_size <= rows:
            return tokenizer, False
        if source == self.suspect:
            if self.tokenizer_from is None:  # what of it is used is looked at by `check_vocabulary`
                return tokenizer, False
            raise UserError(
                f"--tokenizer-from '{self.tokenizer_from}' has {tokenizer.vocab_size} tokens, and the model {rows} "
                "embeddings: give the tokenizer that the model was trained with"
            )
        return load_tokenizer(source, self.base), True


def differing_side_files(one: str, other: str, base: str | None = None) -> list[str]:
    """Which of tokenizer, template and generation settings of two models are not the same."""
    found = []
    try:
        first, second = load_tokenizer(one, base), load_tokenizer(other, base)
    except UserError:
        return ["tokenizer"]
    if _splitting(first) != _splitting(second):
        found.append("tokenizer")
    if first.chat_template != second.chat_template:
        found.append("template")
    if _generation(one, base) != _generation(other, base):
        found.append("generation settings")
    return found


def _splitting(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    added = {i: (str(t.content), t.special) for i, t in tokenizer.added_tokens_decoder.items()}
    return json.loads(tokenizer.backend_tokenizer.to_str()), added, tokenizer.eos_token_id, tokenizer.all_special_ids


def _generation(source: str, base: str | None) -> tuple[Any, ...]:
    """At which tokens it ends, and what would change what a model says; how it samples does not act here."""
    given = ModelSource.find(source, base).whole
    path = given.directory / "generation_config.json"
    found = read_json(path) if given.form == "whole" and path.is_file() else {}
    return ids_in_files(source, base), generation_settings.dropped(found)
