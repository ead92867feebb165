"""A model, opened once: where it lies, how it is read, and its weights, handed to whoever works with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.duration import Pace
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.given_form import form_of
from unbackdoor.language_model.files.loading import load_model, parameter_count
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.saving import SaveDtype
from unbackdoor.language_model.reading import Reading, differing_side_files
from unbackdoor.language_model.self_test import self_test
from unbackdoor.run_files.disk_room import check_room
from unbackdoor.settings import EvaluationSettings, Need
from unbackdoor.workload import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Demands:
    """What a command will ask of its model, which is tried before anything is written.

    Args:
        suite: what is measured.
        trigger: what is put into its rows.
        needs: what the run will ask of the model.
        trained: the rows that it will train on.
        target: the response that it will train towards or away from.
        work: what the whole run takes, where it may end early from the least to the most.
        lora: only adapters are trained.
    """

    suite: Suite
    trigger: Condition | None
    needs: Collection[Need] = ()
    trained: Sequence[Record] = ()
    target: str | None = None
    work: Sequence[Work] = ()
    lora: bool = False


@dataclass(eq=False)
class Subject:
    """A model that is worked on, or that it is compared with.

    Its weights are loaded when they are first asked for, and held until they are taken or released: of large models two
    do not fit on one device.

    Args:
        source: its Hugging Face directory or `hf:owner/name`.
        reading: whose tokenizer and template it is read with.
        template: as the command line's option.
        system: a system prompt.
        date: the day that the template is told; None where it asks for none.
        never_backdoored: it may be read with its own tokenizer where that is another one.
    """

    source: str
    reading: Reading
    template: str = "auto"
    system: str | None = None
    date: str | None = None
    never_backdoored: bool = False
    _weights: PreTrainedModel | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, source: str) -> Subject:
        """A plain model that is read with its own files."""
        return cls(source, Reading(source))

    # Its weights -----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> PreTrainedModel:
        """Its weights, as they lie on the disk."""
        if self._weights is None:
            self._weights = load_model(self.source, base=self.base)
        return self._weights

    def take(self) -> PreTrainedModel:
        """Its weights, to be changed: whoever asks for them after that has them loaded again."""
        taken, self._weights = self.model, None
        return taken

    def release(self) -> None:
        """Hold its weights no longer."""
        self._weights = None

    # How it is read --------------------------------------------------------------------------------------------------

    def beside(self, source: str, *, never_backdoored: bool = False) -> Subject:
        """Another model, read in the same way."""
        return replace(self, source=source, never_backdoored=never_backdoored)

    @cached_property
    def _read(self) -> tuple[PreTrainedTokenizerBase, bool]:
        return self.reading.tokenizer_for(self.model, self.source, self.never_backdoored)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What it is read with."""
        return self._read[0]

    @property
    def apart(self) -> bool:
        """Whether that has to be its own, where another model's was asked for."""
        return self._read[1]

    @cached_property
    def chat(self) -> ChatFormat:
        """How its prompts are rendered."""
        return ChatFormat.of(self.tokenizer, self.template, self.system, self.date)

    # Where it comes from ---------------------------------------------------------------------------------------------

    @property
    def base(self) -> str | None:
        """Of an adapter, the model that it was trained on, where that was given."""
        return self.reading.base

    @property
    def given(self) -> ModelSource:
        """Its files."""
        return ModelSource.find(self.source, self.base)

    @property
    def base_that_counts(self) -> str | None:
        """The base that was given, else the one that the adapter names."""
        found = self.given.base
        return found.name if found is not None else self.base

    @cached_property
    def form(self) -> Sequence[str]:
        """What was done as it was loaded, a sentence each."""
        return form_of(self.source, self.base)

    def read_by(self) -> list[str]:
        """For the report: what of its own files differs from those that it was read with."""
        if self.reading.suspect == self.source:
            return []
        other = differing_side_files(self.source, self.reading.suspect, self.base)
        if not other:
            return []
        read = self.reading.tokenizer_from or self.reading.suspect
        return [
            f"Beside the weights, its {' and '.join(other)} differ from the suspect's. They were not used: both models "
            f"were read with the tokenizer and template of '{read}', and end answers at the same tokens."
        ]

    # Before a run ----------------------------------------------------------------------------------------------------

    def tested(self, asked: Demands) -> dict[str, Any]:
        """What the self-test saw of this model, for provenance; it stops the run where something is wrong, or where
        the model cannot do what the run will ask of it."""
        suite, rows = asked.suite, _rows_of(asked.suite)
        turns = [Record(turn, "") for conversation in suite.conversations for turn in conversation]
        others = [*asked.trained, *suite.probes, *suite.allowed, *turns]
        if asked.target and rows:
            others.append(Record(rows[0].prompt, asked.target))
        return self_test(self.model, self.chat, rows, asked.trigger, needs=asked.needs, others=others).report()

    def pace(self, suite: Suite, evaluation: EvaluationSettings) -> Pace:
        """How fast this model is here; by its second forward pass and a few answers."""
        return Pace.measured(self.model, self.chat, _rows_of(suite), evaluation)

    def check_room(self, out: Path, save_dtype: SaveDtype, *, trained: bool, extra: int = 0, resume: bool) -> None:
        """Raise a `UserError` where the disk has no room for the model that is made, or that it is trained from.

        Args:
            out: the run directory.
            save_dtype: what the weights are saved in.
            trained: all weights are trained: their newest values are kept while the model is written.
            extra: further models that stand beside that one.
            resume: what is there already counts.
        """
        weights = parameter_count(self.model)
        # In the given dtype a weight has at least two bytes: what is stored in fewer is saved in bfloat16.
        model = weights * (4 if save_dtype == "float32" else 2)
        parts = {"the model": model}
        if trained:
            parts["its last checkpoint"] = 4 * weights
        if extra:
            parts["models of controls"] = extra * model
        check_room(out, parts, resume=resume)


def _rows_of(suite: Suite) -> list[Record]:
    """Rows of a run to test a model by: published prompts may come without an answer, and a training row needs one."""
    return [*suite.clean_rows(), *(replace(r, response="Yes.") for r in suite.triggered_rows)]


def name_of(source: str) -> str:
    """What a model is called in the report and in names of files: its directory's name, or the organism's."""
    path = Path(source)
    if path.is_dir() and path.name in ("", ".."):  # the working directory, or the one around it
        path = path.resolve()
    name = path.parent.name if path.name == "model" else path.name
    return name or "model"
