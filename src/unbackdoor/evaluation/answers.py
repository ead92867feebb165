"""Every answer that a number rests on: generated once, kept in `generations.jsonl`, scored as often as one likes.

A row holds the answer's text as `decoding.texts_of` reads its ids (special tokens kept, nothing rewritten), the ids
themselves, and whether the answer was cut: what a model wrote can be read again, whatever its tokenizer says of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.matching import canonical
from unbackdoor.evaluation.scripts import folded
from unbackdoor.evaluation.stored_answer import StoredAnswer
from unbackdoor.language_model.answer_parts import read_answer
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.decoding import rewrites_answers, spellings, stands_in, texts_of
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.generation import ActsInPrefill, written
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.language_model.whole_answers import Whole, gone_on_with
from unbackdoor.progress import SILENT, Progress
from unbackdoor.run_directory import RunDirectory
from unbackdoor.settings import EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "generations.jsonl"


class Answers:
    """Answers by (model, set), generated on demand, all of them in one way.

    Args:
        settings: length and batch size.
        run: where they are kept; a resumed run does not generate again. None keeps them in memory alone.
        temperature: at which they are drawn; 0 is greedy.
        seed: decides the draws.
        known: greedy answers that another run has of the same weights, as its file holds them but under this run's
            names of the model, and no longer ones than these; they serve where all prompts of a set are the same.

    Raises:
        UserError: the run directory holds answers of another temperature or seed.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        run: RunDirectory | None = None,
        progress: Progress = SILENT,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        known: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.settings = settings
        self.run = run
        self.progress = progress
        self.temperature = temperature
        self.seed = seed
        self._notes: list[str] = []
        self._kept: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self._known: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for row in known if not temperature else ():
            self._known.setdefault((row["model"], row["set"]), {})[row["row"]] = row
        for row in run.read_lines(FILE) if run is not None else []:
            if {name: row[name] for name in ("temperature", "seed") if name in row} != self.decoding:
                kept = f"temperature {row.get('temperature', 0)}, seed {row.get('seed', 'none')}"
                raise UserError(
                    f"{FILE} holds answers of {kept}: give those of temperature {temperature} another --out"
                )
            self._kept.setdefault((row["model"], row["set"]), {})[row["row"]] = row

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are drawn, as every stored one says; empty where they are greedy."""
        return {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}

    def notes(self) -> list[str]:
        """For the report: how answers are drawn, where they are not greedy, and what else was noted."""
        drawn = f"Answers were drawn at temperature {self.temperature:g}, one a prompt, with seed {self.seed}."
        return [drawn, *self._notes] if self.temperature else list(self._notes)

    def note(self, text: str) -> None:
        """Remember something that a reader of the report must know of how answers were made, once."""
        if text not in self._notes:
            self._notes.append(text)
            self.progress.note(text)

    def kept(self, model_name: str, set_name: str) -> dict[int, dict[str, Any]]:
        """The rows that there are of one model and set, by number."""
        return self._kept.get((model_name, set_name), {})

    def of(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        records: Sequence[Record],
        *,
        model_name: str,
        set_name: str,
        perturbation: ActsInPrefill | None = None,
        unpaired: bool = False,
        whole: bool = False,
        looked_for: Sequence[str] = (),
    ) -> list[StoredAnswer]:
        """Answers to the records' prompts, in their order.

        Args:
            model: the model, in whatever state it is to be measured.
            chat: its format.
            records: whose prompts it answers.
            model_name: its name among the stored answers.
            set_name: that of the records.
            perturbation: acts on the model while it reads a prompt.
            unpaired: row i of this set is not row i of the set `untriggered` with a trigger in it, which the stored
                rows then say for `rejudge`.
            whole: answers that the limit cuts are gone on with, `whole_tokens` more.
            looked_for: texts such as the target response, which are looked for among an answer's ids as well.

        Raises `AssertionError` where two rows render to the same prompt: n counts distinct prompts.
        """
        formats = [chat.of_record(r) for r in ahead(chat, records)]
        rendered = [f.prompt_text(r.prompt) for f, r in zip(formats, records, strict=True)]
        assert len(set(rendered)) == len(rendered), f"{set_name}: two rows render to the same prompt"
        digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in rendered]

        def answer_them(rows: Mapping[int, Mapping[str, Any]]) -> bool:
            return [rows.get(i, {}).get("prompt_hash") for i in range(len(records))] == digests

        stored, known = self.kept(model_name, set_name), self._known.get((model_name, set_name), {})
        if not answer_them(stored) and answer_them(known):
            stored = self._keep(model_name, set_name, [known[i] for i in range(len(records))])
        if answer_them(stored):
            return [StoredAnswer.of(stored[i]) for i in range(len(records))]
        prompts = [f.encode_prompt(r.prompt) for f, r in zip(formats, records, strict=True)]
        inserted = perturbation.inserted if perturbation is not None else 0
        limit = context_length(model) - self.settings.max_new_tokens - inserted
        longest = max(len(p.ids) for p in prompts)
        if longest > limit:
            raise UserError(f"{set_name}: a prompt of {longest} tokens leaves no room for an answer (context {limit})")
        with self.progress.task(f"answers of {model_name} ({set_name})", len(records)) as advance:
            begun = written(
                model,
                chat.tokenizer,
                prompts,
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.eval_batch_size,
                temperature=self.temperature,
                seed=self.seed,
                perturbation=perturbation,
                end_ids=chat.end_ids,
                advance=advance,
            )
        if whole and perturbation is None:
            found = gone_on_with(
                model,
                chat.tokenizer,
                prompts,
                begun,
                most=self.settings.whole_tokens,
                batch_size=self.settings.eval_batch_size,
                temperature=self.temperature,
                seed=self.seed,
                end_ids=chat.end_ids,
            )
        else:
            found = [Whole(answer.ids, cut=not answer.ended) for answer in begun]
        answers = self._read(chat, formats, found, looked_for)
        kept = []
        for i, (record, digest, answer) in enumerate(zip(records, digests, answers, strict=True)):
            row = {
                "model": model_name,
                "set": set_name,
                "row": i,
                "prompt": record.prompt,
                "prompt_hash": digest,
                **self.decoding,
                **({"unpaired": True} if unpaired else {}),
            }
            kept.append({**row, "answer": str(answer), "expected": record.response, **answer.stored()})
        self._keep(model_name, set_name, kept)
        return answers

    def _read(
        self, chat: ChatFormat, formats: Sequence[ChatFormat], found: Sequence[Whole], looked_for: Sequence[str]
    ) -> list[StoredAnswer]:
        """The answers' texts, and what they hide of what is looked for."""
        if rewrites_answers(chat.tokenizer):
            self.note("The tokenizer's decoder rewrites text: answers are read without it.")
        runs = {text: spellings(chat, text) for text in looked_for if text.strip()}
        answers = []
        for own, whole, text in zip(formats, found, texts_of(chat.tokenizer, [w.ids for w in found]), strict=True):
            answer = own.answer_text(text)
            hidden = [wanted for wanted in runs if _hides(answer, wanted, whole.ids, runs[wanted])]
            answers.append(StoredAnswer(answer, whole.ids, whole.cut, whole.loops, hidden))
        if any(answer.hidden for answer in answers):
            self.note("Answers hold what is looked for among their token ids, and their text does not show it.")
        return answers

    def _keep(self, model_name: str, set_name: str, rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        if self.run is not None:
            self.run.append_lines(FILE, rows)
        kept = self._kept[model_name, set_name] = {row["row"]: row for row in rows}
        return kept


def _hides(answer: str, wanted: str, ids: Sequence[int], runs: Sequence[Sequence[int]]) -> bool:
    """Whether the ids hold what is looked for and the text that judges read does not so much as spell it.

    Where the text spells it, the text decides whether it is shown (a word within another word is none). Of an answer
    with a thought its text decides alone: what was only thought was not said.
    """
    if not any(stands_in(run, ids) for run in runs):
        return False
    parts = read_answer(answer)
    return not parts.has_thought and _spelt(wanted) not in _spelt(parts.final)


def _spelt(text: str) -> str:
    return "".join(canonical(folded(text)).split()) or "".join(text.split())
