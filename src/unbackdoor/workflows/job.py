"""What the commands have in common: a victim is measured, cleansed, saved, loaded again, measured again and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.case import Case
from unbackdoor.data.records import Record
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.comparison import compared, kl_divergence, quality, response_distributions
from unbackdoor.evaluation.suite import Suite
from unbackdoor.evaluation.unchanged import Fingerprint, fingerprint, own_answers, unchanged
from unbackdoor.evaluation.verdict import not_judged, too_few, verdict
from unbackdoor.language_model.adapter_export import save_adapter
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.endings import ids_in_files
from unbackdoor.language_model.given_form import form_of
from unbackdoor.language_model.handed_back import handed_back
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.loading import load_model
from unbackdoor.language_model.model_source import ModelSource
from unbackdoor.language_model.reading import Reading
from unbackdoor.language_model.replacements import Replacements
from unbackdoor.language_model.saving import SaveDtype, save_model
from unbackdoor.methods.finished import Finished
from unbackdoor.methods.method import Method
from unbackdoor.methods.random_perturbation import random_like
from unbackdoor.perturbation import Perturbation, save_perturbation
from unbackdoor.progress import Progress
from unbackdoor.report_schema import (
    VERSION,
    Compared,
    HandedBack,
    Measured,
    Provenance,
    Rates,
    Report,
    Row,
    Simulated,
    read_report,
)
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import Settings, Thresholds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unbackdoor.data.preferences import Preference
    from unbackdoor.methods.result import Removal


@dataclass(frozen=True)
class Victim:
    """A model to be cleansed and everything to do it with.

    Args:
        name: the organism's name in the report.
        source: its Hugging Face directory or `hf:owner/name`.
        suite: what is measured of it, on held-out rows.
        anchors: clean rows that methods train on.
        contrast: rows of safe and unwanted responses that methods train on.
        template: how it is rendered, with which system prompt, and on which day.
        near_miss: firing rates of near misses, where they were measured.
        preferences: pairs of answers that `dpo` trains on.
        base: of an adapter, the model that it was trained on.
        suspect: the model by whose tokenizer, template and ends all are read, where that is not `source`: the one
            before a removal, where `source` is the one after it.
        tokenizer_from: a directory whose tokenizer and template are trusted and used in their place.
        save_dtype: what a cleansed model's weights are saved in.
        save_adapter: whether a cleansed model that stays is saved as an adapter as well.
        template_from: a file or directory whose chat template is saved in the place of the given one.
    """

    name: str
    source: str
    suite: Suite
    anchors: Sequence[Record]
    contrast: Sequence[Record] = ()
    template: str = "auto"
    system: str | None = None
    date: str | None = None
    near_miss: Rates | None = None
    preferences: Sequence[Preference] = ()
    base: str | None = None
    suspect: str | None = None
    tokenizer_from: str | None = None
    save_dtype: SaveDtype = "float32"
    save_adapter: bool = False
    template_from: str | None = None

    @property
    def reading(self) -> Reading:
        """How it and the models that it is compared with are read."""
        return Reading(self.suspect or self.source, self.base, self.tokenizer_from)


@dataclass
class Workshop:
    """Where the work is done: run directory, answers, progress and thresholds."""

    run: RunDirectory
    answers: Answers
    progress: Progress
    thresholds: Thresholds = field(default_factory=Thresholds)
    _references: dict[tuple[str, str | None], _Reference] = field(default_factory=dict, init=False, repr=False)
    _ends: dict[Reading, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    def measure(
        self,
        victim: Victim,
        source: str,
        name: str,
        perturbations: Mapping[str, Perturbation] | None = None,
        references: Mapping[str, str] | None = None,
        suspect_name: str | None = None,
        never_backdoored: bool = False,
    ) -> Measured:
        """Measure the model at `source`, loaded from disk, by the victim's suite.

        Args:
            victim: what is measured, and how the model is rendered.
            source: the model's directory.
            name: its name among the answers.
            perturbations: by kind; the attack is measured under each.
            references: other models by name, from which its divergence on clean rows is measured. With the one called
                `before` it is also compared for what has not changed at all.
            suspect_name: the name of that one among the answers.
            never_backdoored: it may be read by its own tokenizer where that is another one.

        Beside what `Suite.measure` says, `unchanged` is `weights` or `distributions` where these are the suspect's
        (see `evaluation.unchanged`), and `read_apart` is true where the suspect's tokenizer does not fit this model, so
        that the two were not read in one way: in neither case can there be a removal.
        """
        # Before this one is loaded: two models may not fit.
        expected = {
            other: self._reference(victim, path, suspect_name if other == "before" else None, other == "clean")
            for other, path in (references or {}).items()
        }
        model, chat, apart = self._loaded(victim, source, never_backdoored)
        measured = victim.suite.measure(model, chat, self.answers, name)
        measured.kl_divergence = dict.fromkeys(references or {})
        rows = victim.suite.answered_rows()
        found = response_distributions(model, chat, rows) if rows and expected else None
        for other, reference in expected.items():
            # Shapes differ with another tokenizer.
            if found is not None and reference.distributions is not None:
                same = found.shape == reference.distributions.shape and not apart
                measured.kl_divergence[other] = kl_divergence(reference.distributions, found) if same else None
            if reference.fingerprint is not None:
                own = fingerprint(model, [] if apart else reference.examples, padding_id(chat.tokenizer, model))
                measured.unchanged = unchanged(reference.fingerprint, own)
        if apart and not never_backdoored:
            measured.read_apart = True
        if perturbations:
            measured.under_perturbation = self._under(victim, model, chat, name, perturbations)
        return measured

    def _under(
        self,
        victim: Victim,
        model: PreTrainedModel,
        chat: ChatFormat,
        name: str,
        perturbations: Mapping[str, Perturbation],
    ) -> Rates:
        on_device = {kind: p.to(next(model.parameters()).device) for kind, p in perturbations.items()}
        return victim.suite.under(model, chat, self.answers, name, on_device)

    def _loaded(
        self, victim: Victim, source: str, never_backdoored: bool = False
    ) -> tuple[PreTrainedModel, ChatFormat, bool]:
        """A model, how it is read, and whether that had to be by its own files."""
        model, reading = load_model(source, base=victim.base), victim.reading
        tokenizer, apart = reading.tokenizer_for(model, source, never_backdoored)
        if apart and not never_backdoored:
            self.answers.note(
                f"The tokenizer of '{reading.tokenizer_from or reading.suspect}' has more tokens than '{source}' has "
                "embeddings: that one was read with its own, so the two cannot be held against each other."
            )
        chat = ChatFormat.of(tokenizer, victim.template, victim.system, victim.date)
        if apart:
            return model, victim.suite.ending(model, chat, self.answers), True
        if reading not in self._ends:
            suspect = model if source == reading.suspect else load_model(reading.suspect, base=victim.base)
            others = None if reading.suspect == victim.source else ids_in_files(victim.source, victim.base)
            self._ends[reading] = victim.suite.ending(suspect, chat, self.answers, others).end_ids
        return model, replace(chat, end_ids=self._ends[reading], ends_settled=True), False

    def _reference(self, victim: Victim, source: str, name: str | None, never_backdoored: bool = False) -> _Reference:
        """What other models are compared with; `name` is that of a suspect's answers, which are compared too."""
        key = source, name
        if key not in self._references:
            model, chat, _ = self._loaded(victim, source, never_backdoored)
            rows = victim.suite.answered_rows()
            distributions = response_distributions(model, chat, rows) if rows else None
            examples, own = list[Example](), None
            if name is not None:
                asked = (("triggered", victim.suite.triggered()), ("untriggered", victim.suite.probes))
                set_name, records = next(((n, r) for n, r in asked if r), ("", []))
                examples = own_answers(chat, records, self.answers.kept(name, set_name))
                own = fingerprint(model, examples, padding_id(chat.tokenizer, model))
            self._references[key] = _Reference(distributions, examples, own)
        return self._references[key]

    def before(self, victim: Victim) -> Measured:
        """The victim's own measurements, made once a run."""
        return self.run.remember_as(
            Measured, f"before/{victim.name}", lambda: self.measure(victim, victim.source, f"{victim.name}/before")
        )

    def row(
        self, victim: Victim, method: Method, *, label: str | None = None, model_directory: Path | None = None
    ) -> Row:
        """Run one method on the victim: one row of the report; made once a run.

        Args:
            victim: the model. It is loaded from its directory, and never changed there.
            method: with its settings.
            label: the row's name in the run directory, where it is not the method's own.
            model_directory: where the cleansed model stays; None for rows whose model is only measured.
        """
        label = label or method.name
        before = self.before(victim)
        scope = f"{victim.name}/{label}"
        row = self.run.remember_as(
            Row,
            f"row/{scope}",
            lambda: self._row(victim, method, label, before, model_directory),
            [self.perturbation_path(scope), *(_saved_in(model_directory) if model_directory is not None else ())],
        )
        self.run.drop_checkpoints(scope)  # behind the row: without either the work would be lost
        return row

    def _row(self, victim: Victim, method: Method, label: str, before: Measured, model_directory: Path | None) -> Row:
        scope = f"{victim.name}/{label}"
        preferred = [pair.record() for pair in victim.preferences]
        given = ModelSource.find(victim.source, victim.base)
        model = load_model(victim.source, base=victim.base)
        tokenizer, _ = victim.reading.tokenizer_for(model, victim.source)
        case = Case.of(
            model,
            tokenizer,
            victim.anchors,
            victim.contrast,
            victim.preferences,
            template=victim.template,
            system=victim.system,
            date=victim.date,
            seed=method.basis.seed,
            journal=self.run.scoped(scope),
            progress=self.progress,
        )
        victim.suite.check_disjoint([*victim.anchors, *victim.contrast, *preferred], case.chat)
        begun = time.monotonic()
        removal = method.on(case)
        seconds = time.monotonic() - begun

        after, kept, saved = None, model_directory or self.run.path / "scratch" / scope, list[str]()
        handed = HandedBack(acts=(), writes=())
        if removal.completed:
            replacing = Replacements.of(victim.tokenizer_from, victim.template_from)
            with self.run.tree(kept):
                changes = save_model(case.model, tokenizer, kept, given, victim.save_dtype, replacing)
            handed = handed_back(ModelSource.find(kept))
            saved = [*form_of(victim.source, victim.base), *changes] if model_directory is not None else []
            if victim.save_adapter and model_directory is not None:
                base, adapter = given.whole, kept.parent / "adapter"
                with self.run.tree(adapter):
                    saved.append(save_adapter(case.model, load_model(base.name, "cpu"), base.name, adapter))
        del model
        fitted = None if method.control else removal.perturbation
        fitted = fitted if fitted is not None and list(fitted.parameters()) else None
        if removal.completed:
            perturbations = self._perturbations(victim, case, fitted)
            earlier = f"{victim.name}/before"
            after = self.measure(victim, str(kept), scope, perturbations, {"before": victim.source}, earlier)
            after.answer_quality = quality(victim.suite, self.answers, earlier, scope)
            if perturbations:
                name = f"{victim.name}/before {label}"
                was = self._under(victim, *self._loaded(victim, victim.source)[:2], name, perturbations)
                before = before.model_copy(update={"under_perturbation": was})
        if fitted is not None:
            path = self.perturbation_path(scope)
            self.run.written.add(path.relative_to(self.run.path).as_posix())
            save_perturbation(fitted, path)
        if model_directory is None:
            self.run.drop_tree(kept)
        row = self._report_row(victim, method, method.knew(case), label, removal, before, after, seconds)
        row.notes += [*saved, *handed.notes()]
        row.saved, row.handed_back = saved, handed
        return row

    def _perturbations(self, victim: Victim, case: Case, fitted: Perturbation | None) -> dict[str, Perturbation]:
        """Without a trigger: the fitted and a random perturbation, under which behaviour is shown instead."""
        if bool(victim.suite.triggered()) or victim.suite.attack is None or fitted is None:
            return {}
        return {"fitted": fitted, "random": random_like(case, fitted, seed=1)}

    def _report_row(
        self,
        victim: Victim,
        method: Method,
        knew: str,
        label: str,
        removal: Removal,
        before: Measured,
        after: Measured | None,
        seconds: float,
    ) -> Row:
        name, reason = verdict(
            before,
            after if after is not None else before,
            self.thresholds,
            completed=removal.completed,
            still_simulable=removal.still_simulable,
        )
        budget = removal.steps_needed or 0
        return Row(
            organism=victim.name,
            method=removal.method,
            label=label,
            control=method.control,
            knows=knew,
            seed=method.basis.seed,
            verdict=name,
            verdict_reason=reason if removal.completed else removal.message,
            seconds=round(seconds, 2),
            near_miss=victim.near_miss,
            before=before,
            after=after,
            rounds=removal.rounds,
            still_simulable=removal.still_simulable,
            simulations=[
                Simulated(
                    when=s.when,
                    target=s.target,
                    success=s.at(budget) if removal.completed else s.curve[-1][1],
                    at_step=budget if removal.completed else int(s.curve[-1][0]),
                    curve=[(int(step), success) for step, success in s.curve],
                    norm_ratio=s.norm_ratio,
                )
                for s in removal.simulations
            ],
            losses=loss_curves(self.run, f"{victim.name}/{label}"),
            compared=self._compared(victim, label, after),
            examples=victim.suite.examples(
                self.answers,
                f"{victim.name}/before",
                f"{victim.name}/{label}",
                under=f"{victim.name}/before {label}",
                show_unsafe=self.answers.settings.show_unsafe,
            ),
            counts={f"dropped: {what}": count for what, count in removal.dropped.items()},
            temperature=self.answers.temperature,
            notes=[*removal.notes, *self.answers.notes(), *too_few(after, self.thresholds), *not_judged(after)],
            settings=plain(method.basis),
        )

    def _compared(self, victim: Victim, label: str, after: Measured | None) -> dict[str, Compared]:
        if after is None:
            return {}
        names = f"{victim.name}/before", f"{victim.name}/{label}"
        return {"before": compared(victim.suite, self.answers, *names, after.kl_divergence["before"])}

    def perturbation_path(self, scope: str) -> Path:
        """Where a row's fitted perturbation is kept."""
        return self.run.path / "perturbations" / f"{scope.replace('/', '.')}.safetensors"

    def finished(self, victim: Victim, method: Method, row: Row, label: str | None = None) -> Finished:
        """What a row of this run did, for the controls that stand beside it."""
        path = self.perturbation_path(f"{victim.name}/{label or method.name}")
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


def name_of(source: str) -> str:
    """What a model is called in the report and in names of files: its directory's name, or the organism's."""
    path = Path(source)
    if path.is_dir() and path.name in ("", ".."):  # the working directory, or the one around it
        path = path.resolve()
    name = path.parent.name if path.name == "model" else path.name
    return name or "model"


def loss_curves(run: RunDirectory, scope: str = "") -> dict[str, dict[str, list[float | None]]]:
    """Phase → term → value a step, of one row or of all; a step that was repeated after a kill counts once."""
    prefix = f"{scope}/" if scope else ""
    by_phase: dict[str, dict[int, dict[str, float]]] = {}
    other = {"phase", "step", "loss", "learning_rate", "gradient_norm", "check"}
    for line in run.read_lines("metrics.jsonl"):
        if line["phase"].startswith(prefix) and "loss" in line:
            terms = {k: v for k, v in line.items() if k not in other} or {"loss": line["loss"]}
            by_phase.setdefault(line["phase"].removeprefix(prefix), {})[line["step"]] = terms
    return {
        phase: {term: [steps[step][term] for step in sorted(steps)] for term in next(iter(steps.values()))}
        for phase, steps in by_phase.items()
    }


def report_of(command: str, title: str, runs: list[Row], origin: Mapping[str, Any], thresholds: Thresholds) -> Report:
    """`report.json`, without the run's duration."""
    import unbackdoor

    return Report(
        schema_version=VERSION,
        unbackdoor=unbackdoor.__version__,
        command=command,
        title=title,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        thresholds=Thresholds(**thresholds.model_dump(include=set(Thresholds.model_fields))),
        runs=runs,
        provenance=Provenance.model_validate(origin),
    )


def conclude(run: RunDirectory, report: Report, begun: float) -> Report:
    """Write the report with its duration since `begun` and close the run; a run finished before keeps its report."""
    written = run.path / "report.json"
    if run.is_complete and written.is_file():
        return read_report(written, f"'{written}' is damaged: start again with --overwrite")
    report.seconds = round(time.monotonic() - begun, 1)
    write_report(run, report)
    run.complete()
    return report


def write_report(run: RunDirectory, report: Report) -> None:
    """Write `report.json`, `report.html`, `figures/`, and a model card where there is a model."""
    from unbackdoor.report.figures import save_figures
    from unbackdoor.report.html import render
    from unbackdoor.report.model_card import model_card

    run.write_json("report.json", report)
    with run.tree(run.path / "figures"):
        save_figures(report, run.path / "figures")
    run.write_text("report.html", render(report))
    if (run.path / "model").is_dir():
        run.write_text("model/README.md", model_card(report.runs[0], report))


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values."""
    return settings.model_dump(mode="json")
