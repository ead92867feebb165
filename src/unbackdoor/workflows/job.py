"""A job: a subject, a suite and a run directory. The model is measured, cleansed, saved, loaded again and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.case import Case
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.changed_answers import kl_divergence, quality, response_distributions
from unbackdoor.evaluation.suite import Suite
from unbackdoor.evaluation.unchanged import Fingerprint, fingerprint, own_answers, unchanged
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.endings import ids_in_files
from unbackdoor.language_model.files.adapter_export import save_adapter
from unbackdoor.language_model.files.handed_back import handed_back
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.files.replacements import Replacements
from unbackdoor.language_model.files.saving import SaveDtype, save_model
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.method import Method
from unbackdoor.methods.random_perturbation import random_like
from unbackdoor.perturbation import Perturbation, save_perturbation
from unbackdoor.progress import Progress
from unbackdoor.report_schema import HandedBack, Measured, Rates, Report, Row
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import Thresholds
from unbackdoor.workflows.conclusion import conclude, report_of
from unbackdoor.workflows.report_row import report_row
from unbackdoor.workflows.rows import NONE_TRAINED, TrainingRows
from unbackdoor.workflows.subject import Subject

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Saving:
    """How a new model is saved.

    Args:
        dtype: what its weights are saved in.
        adapter: whether one that stays is saved as an adapter as well.
        template_from: a file or directory whose chat template is saved in the place of the given one.
    """

    dtype: SaveDtype = "float32"
    adapter: bool = False
    template_from: str | None = None


AS_TRAINED = Saving()


@dataclass
class Job:
    """What is done with a subject, and where it is written.

    Args:
        name: what the model is called in the report.
        subject: the model.
        suite: what is measured of it and of the models that it is compared with, on held-out rows.
        run: the run directory.
        answers: every answer that a number rests on.
        progress: where it is said what happens.
        thresholds: what verdicts ask for.
        rows: what methods train on.
        saving: how a cleansed model is saved.
        near_miss: firing rates of near misses, where they were measured.
        origin: where the numbers come from.
        begun: when the command began.
    """

    name: str
    subject: Subject
    suite: Suite
    run: RunDirectory
    answers: Answers
    progress: Progress
    thresholds: Thresholds = field(default_factory=Thresholds)
    rows: TrainingRows = NONE_TRAINED
    saving: Saving = AS_TRAINED
    near_miss: Rates | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    begun: float = 0.0
    _references: dict[tuple[str, str | None], _Reference] = field(default_factory=dict, init=False, repr=False)
    _ends: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    def measure(
        self,
        model: Subject,
        name: str,
        perturbations: Mapping[str, Perturbation] | None = None,
        references: Mapping[str, Subject] | None = None,
        suspect_name: str | None = None,
    ) -> Measured:
        """Measure a model by the suite.

        Args:
            model: the subject, or one that is read in the same way.
            name: its name among the answers.
            perturbations: by kind; the attack is measured under each.
            references: other models by name, from which its divergence on clean rows is measured. With the one called
                `before` it is also compared for what has not changed at all.
            suspect_name: the name of that one among the answers.

        Beside what `Suite.measure` says, `unchanged` is `weights` or `distributions` where these are the suspect's
        (see `evaluation.unchanged`), and `read_apart` is true where the suspect's tokenizer does not fit this model, so
        that the two were not read in one way: in neither case can there be a removal.
        """
        # Before this one is loaded: two models may not fit.
        expected = {}
        for other, subject in (references or {}).items():
            expected[other] = self.reference(subject, suspect_name if other == "before" else None)
            subject.release()
        chat = self.format(model)
        measured = self.suite.measure(model.model, chat, self.answers, name)
        measured.kl_divergence = dict.fromkeys(references or {})
        rows = self.suite.answered_rows()
        found = response_distributions(model.model, chat, rows) if rows and expected else None
        for other, reference in expected.items():
            # Shapes differ with another tokenizer.
            if found is not None and reference.distributions is not None:
                same = found.shape == reference.distributions.shape and not model.apart
                measured.kl_divergence[other] = kl_divergence(reference.distributions, found) if same else None
            if reference.fingerprint is not None:
                examples = [] if model.apart else reference.examples
                own = fingerprint(model.model, examples, padding_id(chat.tokenizer, model.model))
                measured.unchanged = unchanged(reference.fingerprint, own)
        if model.apart and not model.never_backdoored:
            measured.read_apart = True
        if perturbations:
            measured.under_perturbation = self._under(model.model, chat, name, perturbations)
        return measured

    def _under(
        self, model: PreTrainedModel, chat: ChatFormat, name: str, perturbations: Mapping[str, Perturbation]
    ) -> Rates:
        on_device = {kind: p.to(next(model.parameters()).device) for kind, p in perturbations.items()}
        return self.suite.under(model, chat, self.answers, name, on_device)

    def format(self, model: Subject) -> ChatFormat:
        """How a model is read: it ends answers where the suspect does, unless it has to be read by its own files."""
        if model.apart:
            if not model.never_backdoored:
                self.answers.note(
                    f"The tokenizer of '{model.reading.tokenizer_from or model.reading.suspect}' has more tokens than "
                    f"'{model.source}' has embeddings: that one was read with its own, so the two cannot be held "
                    "against each other."
                )
            return self.suite.ending(model.model, model.chat, self.answers)
        if self._ends is None:
            suspect = model.reading.suspect
            read = model if model.source == suspect else model.beside(suspect)
            others = None if suspect == self.subject.source else ids_in_files(self.subject.source, self.subject.base)
            self._ends = self.suite.ending(read.model, model.chat, self.answers, others).end_ids
        return replace(model.chat, end_ids=self._ends, ends_settled=True)

    def reference(self, model: Subject, name: str | None) -> _Reference:
        """What other models are compared with; `name` is that of a suspect's answers, which are compared too.

        It is found once a run, while the model is loaded for something else, or loaded for it alone.
        """
        key = model.source, name
        if key not in self._references:
            chat, rows = self.format(model), self.suite.answered_rows()
            distributions = response_distributions(model.model, chat, rows) if rows else None
            examples, own = list[Example](), None
            if name is not None:
                asked = (("triggered", self.suite.triggered()), ("untriggered", self.suite.probes))
                set_name, records = next(((n, r) for n, r in asked if r), ("", []))
                examples = own_answers(chat, records, self.answers.kept(name, set_name))
                own = fingerprint(model.model, examples, padding_id(chat.tokenizer, model.model))
            self._references[key] = _Reference(distributions, examples, own)
        return self._references[key]

    def before(self) -> Measured:
        """The subject's own measurements, made once a run."""
        name = f"{self.name}/before"
        return self.run.remember_as(Measured, f"before/{self.name}", lambda: self.measure(self.subject, name))

    def row(self, method: Method, *, label: str | None = None, model_directory: Path | None = None) -> Row:
        """Run one method on the subject: one row of the report; made once a run.

        Args:
            method: with its settings.
            label: the row's name in the run directory, where it is not the method's own.
            model_directory: where the cleansed model stays; None for rows whose model is only measured.
        """
        label = label or method.name
        before = self.before()
        scope = f"{self.name}/{label}"
        row = self.run.remember_as(
            Row,
            f"row/{scope}",
            lambda: self._row(method, label, before, model_directory),
            [self.perturbation_path(scope), *(_saved_in(model_directory) if model_directory is not None else ())],
        )
        self.run.drop_checkpoints(scope)  # behind the row: without either the work would be lost
        return row

    def _row(self, method: Method, label: str, before: Measured, model_directory: Path | None) -> Row:
        scope, earlier, subject = f"{self.name}/{label}", f"{self.name}/before", self.subject
        chat = self.format(subject)
        self.reference(subject, earlier)  # while its weights are as they came
        perturbations: dict[str, Perturbation] = {}
        was: Rates = {}
        aside = 0.0

        def under(case: Case, fitted: Perturbation) -> None:
            """Without a trigger, behaviour is shown under the fitted and a random perturbation instead."""
            nonlocal aside
            since = time.monotonic()
            perturbations.update(fitted=fitted, random=random_like(case, fitted, seed=1))
            was.update(self._under(case.model, chat, f"{earlier} {label}", perturbations))
            aside += time.monotonic() - since

        case = Case.of(
            subject.take(),
            subject.tokenizer,
            self.rows.anchors,
            self.rows.contrast,
            self.rows.preferences,
            template=subject.template,
            system=subject.system,
            date=subject.date,
            seed=method.basis.seed,
            journal=self.run.scoped(scope),
            progress=self.progress,
        )
        if not method.control and not self.suite.triggered() and self.suite.attack is not None:
            case.when_fitted = under
        self.suite.check_disjoint(self.rows.all(), case.chat)
        begun = time.monotonic()
        removal = method.on(case)
        seconds = time.monotonic() - begun - aside

        after, kept, saved = None, model_directory or self.run.path / "scratch" / scope, list[str]()
        handed, knew = HandedBack(acts=(), writes=()), method.knew(case)
        if removal.completed:
            changes = self.save(case.model, kept)
            handed = handed_back(ModelSource.find(kept))
            saved = [*subject.form, *changes] if model_directory is not None else []
            if self.saving.adapter and model_directory is not None:
                base, adapter = subject.given.whole, kept.parent / "adapter"
                with self.run.tree(adapter):
                    saved.append(save_adapter(case.model, load_model(base.name, "cpu"), base.name, adapter))
        fitted = None if method.control else removal.perturbation
        fitted = fitted if fitted is not None and list(fitted.parameters()) else None
        if case.when_fitted is not None and fitted is not None and not was:  # a method that does not tell in time
            perturbations = {"fitted": fitted, "random": random_like(case, fitted, seed=1)}
        del case  # its model is on the disk: the one that is measured is loaded from there
        if removal.completed:
            after = self.measure(subject.beside(str(kept)), scope, perturbations, {"before": subject}, earlier)
            after.answer_quality = quality(self.suite, self.answers, earlier, scope)
            if perturbations:
                was = was or self._under(subject.model, chat, f"{earlier} {label}", perturbations)
                before = before.model_copy(update={"under_perturbation": was})
        if fitted is not None:
            path = self.perturbation_path(scope)
            self.run.written.add(path.relative_to(self.run.path).as_posix())
            save_perturbation(fitted, path)
        if model_directory is None:
            self.run.drop_tree(kept)
        row = report_row(self, method, knew, label, removal, before, after, seconds)
        row.notes += [*saved, *handed.notes()]
        row.saved, row.handed_back = saved, handed
        return row

    def save(self, model: PreTrainedModel, directory: Path) -> list[str]:
        """Save what has become of the subject's weights; what is other than as it was given, a sentence each."""
        subject, saving = self.subject, self.saving
        replacing = Replacements.of(subject.reading.tokenizer_from, saving.template_from)
        with self.run.tree(directory):
            return save_model(model, subject.tokenizer, directory, subject.given, saving.dtype, replacing)

    def conclude(self, command: str, title: str, rows: list[Row]) -> Report:
        """Write the report, with the run's duration, and close the run; one that was finished keeps its report."""
        return conclude(self.run, report_of(command, title, rows, self.origin, self.thresholds), self.begun)

    def perturbation_path(self, scope: str) -> Path:
        """Where a row's fitted perturbation is kept."""
        return self.run.path / "perturbations" / f"{scope.replace('/', '.')}.safetensors"

    def finished(self, method: Method, row: Row, label: str | None = None) -> Finished:
        """What a row of this run did, for the controls that stand beside it."""
        path = self.perturbation_path(f"{self.name}/{label or method.name}")
        return Finished(method.basis, row.rounds, path if path.exists() else None, self.run.path)


@dataclass(frozen=True)
class _Reference:
    """What is kept in memory of a model that others are compared with."""

    distributions: torch.Tensor | None
    examples: list[Example]
    fingerprint: Fingerprint | None


def _saved_in(model_directory: Path) -> tuple[Path, Path]:
    """Where a cleansed model stays, and its adapter where there is one."""
    return model_directory, model_directory.parent / "adapter"
