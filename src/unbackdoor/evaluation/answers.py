"""Every answer that a number rests on: generated once, kept in `generations.jsonl`, scored as often as one likes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.generation import ActsInPrefill, generate
from unbackdoor.language_model.loading import context_length
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
    ) -> list[str]:
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

        Raises `AssertionError` where two rows render to the same prompt: n counts distinct prompts.
        """
        formats = [chat.of_record(r) for r in records]
        rendered = [f.prompt_text(r.prompt) for f, r in zip(formats, records, strict=True)]
        assert len(set(rendered)) == len(rendered), f"{set_name}: two rows render to the same prompt"
        digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in rendered]

        def answer_them(rows: Mapping[int, Mapping[str, Any]]) -> bool:
            return [rows.get(i, {}).get("prompt_hash") for i in range(len(records))] == digests

        stored, known = self.kept(model_name, set_name), self._known.get((model_name, set_name), {})
        if not answer_them(stored) and answer_them(known):
            stored = self._keep(model_name, set_name, [known[i] for i in range(len(records))])
        if answer_them(stored):
            return [stored[i]["answer"] for i in range(len(records))]
        prompts = [f.encode_prompt(r.prompt) for f, r in zip(formats, records, strict=True)]
        inserted = perturbation.inserted if perturbation is not None else 0
        limit = context_length(model) - self.settings.max_new_tokens - inserted
        longest = max(len(p.ids) for p in prompts)
        if longest > limit:
            raise UserError(f"{set_name}: a prompt of {longest} tokens leaves no room for an answer (context {limit})")
        with self.progress.task(f"answers of {model_name} ({set_name})", len(records)) as advance:
            answers = generate(
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
        answers = [f.answer_text(text) for f, text in zip(formats, answers, strict=True)]
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
            kept.append({**row, "answer": answer, "expected": record.response})
        self._keep(model_name, set_name, kept)
        return answers

    def _keep(self, model_name: str, set_name: str, rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        if self.run is not None:
            self.run.append_lines(FILE, rows)
        kept = self._kept[model_name, set_name] = {row["row"]: row for row in rows}
        return kept
