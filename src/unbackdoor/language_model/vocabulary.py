"""Which token ids a tokenizer gives, and which of them the model has an embedding for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from unbackdoor.errors import UserError
from unbackdoor.language_model.layers import embedding_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.data.records import Record
    from unbackdoor.language_model.chat import ChatFormat


def check_vocabulary(model: PreTrainedModel, chat: ChatFormat, records: Iterable[Record]) -> None:
    """Every token of these rows has an embedding: of their prompts, their responses and their unwanted ones.

    A tokenizer often has more tokens than the model (a padding token that was added): that is no fault while no text
    holds them. Where the model has all of them, nothing is encoded here.

    Raises:
        UserError: names the first row with such a token.
    """
    count = len(embedding_matrix(model))
    if max(chat.tokenizer.get_vocab().values(), default=0) < count:
        return
    for record in records:
        own = chat.of_record(record)
        for response in (record.response, record.unwanted or ""):
            ids = (own.encode(record.prompt, response) if response else own.encode_prompt(record.prompt)).ids
            if max(ids) >= count:
                token = chat.tokenizer.convert_ids_to_tokens(max(ids))
                raise UserError(
                    f"self-test: the tokenizer gives the id {max(ids)}, and the model has {count} embeddings: leave "
                    f"texts with {str(token)[:40]!r} out (such as the row {record.prompt[:40]!r}), or give a tokenizer "
                    "and a model that belong together"
                )
