"""What a deterministic program needs in order to be resumed. By itself it keeps nothing: the library's default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


class Journal:
    """What a deterministic program needs in order to be resumed. This one keeps nothing: the library's default.

    `remember` answers from the journal when the step was finished before; `log` appends one line of metrics; the
    checkpoint methods serve `training.train`.
    """

    def remember(self, key: str, compute: Callable[[], T], files: Iterable[Path] = ()) -> T:
        """The JSON value of a finished step, computed once a run; again where one of its `files` is damaged later."""
        return compute()

    def remember_as(self, kind: type[T], key: str, compute: Callable[[], T], files: Iterable[Path] = ()) -> T:
        """The same of a step whose value is a model of `report_schema`, or is made of such models."""
        return TypeAdapter(kind).validate_python(self.remember(key, compute, files))

    def log(self, **metrics: Any) -> None:
        """Append one line to the metrics."""

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """Result and tensors of a finished training phase. Tensors are None where a later phase has replaced them."""
        return None

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and tensors of an interrupted training phase."""
        return None

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep the state of a training phase that goes on."""

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep the outcome of a training phase; `slot` holds the newest tensors of one set of parameters."""

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are worth making."""
        return False
