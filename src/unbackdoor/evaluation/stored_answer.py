"""An answer as `generations.jsonl` holds it: its text, and what its token ids say beside that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

WHOLE = ("triggered", "untriggered")
"""The sets whose answers are gone on with where the limit cut them."""


class StoredAnswer(str):
    """An answer's text, which every judge reads, with what is stored beside it.

    Attributes:
        ids: the tokens that were generated, without the one that ended them; empty in files that hold none.
        cut: the answer had not ended when it was left: its rest is unknown.
        loops: it ends in a stretch that it repeats without end.
        hidden: texts that were looked for and stand among the ids, though the text does not show them.
    """

    ids: tuple[int, ...]
    cut: bool
    loops: bool
    hidden: tuple[str, ...]

    def __new__(
        cls, text: str, ids: Sequence[int] = (), cut: bool = False, loops: bool = False, hidden: Sequence[str] = ()
    ) -> Self:
        made = super().__new__(cls, text)
        made.ids, made.cut, made.loops, made.hidden = tuple(ids), cut, loops, tuple(hidden)
        return made

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The answer of a stored row; what is not stored, or is no list of its kind, is passed over."""
        ids, hidden = row.get("ids"), row.get("hidden")
        return cls(
            row["answer"],
            [i for i in ids if isinstance(i, int)] if isinstance(ids, list) else (),
            row.get("cut") is True,
            row.get("loops") is True,
            [text for text in hidden if isinstance(text, str)] if isinstance(hidden, list) else (),
        )

    def stored(self) -> dict[str, Any]:
        """What a row says of it beside its text; `loops` and `hidden` only where there is something to say."""
        told: dict[str, Any] = {"ids": list(self.ids), "cut": self.cut}
        if self.loops:
            told["loops"] = True
        if self.hidden:
            told["hidden"] = list(self.hidden)
        return told
