"""Rows as they come in: read, checked, told apart by what they render to, held out; what is dropped is counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unbackdoor.data.dialogues import Turns
from unbackdoor.data.named_sources import named_preferences, named_records
from unbackdoor.data.preferences import Preference, read_pairs
from unbackdoor.data.readers import Read, read_conversations, read_data
from unbackdoor.data.records import Record, check_records, shuffled, split
from unbackdoor.data.rendered import asked, rendered, sort_out
from unbackdoor.data.template_marks import marked
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.preference_training import encode_pair, length
from unbackdoor.progress import Progress
from unbackdoor.settings import EvaluationSettings

LEAST_ROWS = 40
"""Fewer clean rows leave nothing to train on once some are held out."""
TURN_ROOM = 16
"""Tokens by which an answer may grow when it is read again as text."""
TRIGGER_ROOM = 32
"""Tokens that a held-out prompt must leave for a trigger."""


@dataclass(frozen=True)
class TrainingRows:
    """What methods train on: clean rows, rows of safe and unwanted responses, pairs of answers."""

    anchors: Sequence[Record] = ()
    contrast: Sequence[Record] = ()
    preferences: Sequence[Preference] = ()

    def all(self) -> list[Record]:
        """Every one of them, as rows."""
        return [*self.anchors, *self.contrast, *(pair.record() for pair in self.preferences)]


NONE_TRAINED = TrainingRows()


@dataclass
class Intake:
    """Reads rows and drops those that cannot be used; what is dropped is said on standard error and counted.

    Args:
        progress: where it is said.
        counts: for the report.
        turns: which answers of a dialogue are rows.
        formats: those of the models that are measured; rows that one of them renders alike are one row.
        context: the model's, in tokens.
        trained_on: the prompts of rows that are trained on, as they are rendered.
    """

    progress: Progress
    counts: dict[str, int] = field(default_factory=dict)
    turns: Turns = "last"
    formats: Sequence[ChatFormat] = ()
    context: int = 0
    trained_on: set[str] = field(default_factory=set)

    @property
    def chat(self) -> ChatFormat:
        """The format of the model that is worked on."""
        return self.formats[0]

    def read(
        self,
        path: Path | None,
        *,
        needs_response: bool = True,
        needs_unwanted: bool = False,
        least: int = 1,
        most: int | None = None,
        seed: int = 0,
        any_label: bool = True,
    ) -> list[Record]:
        """The usable rows of a data file (at most so many, drawn by seed); none where there is no file.

        Without `any_label` XSTest's prompts that are labelled unsafe are left out.
        """
        if path is None:
            return []
        named = named_records(path)
        read = (
            read_data(path, turns=self.turns, needs_response=needs_response, safe_only=not any_label)
            if named is None
            else Read(named)
        )
        for reason, count in read.dropped.items():
            self._drop(count, f"{path}: {reason}")
        for what, count in read.left_out.items():
            self._say(count, f"{path}: {what}", "not used")
        rows = read.records
        if most is not None and most < len(rows):
            rows = shuffled(rows, seed)[:most]
        checked = check_records(
            rows, str(path), needs_response=needs_response, needs_unwanted=needs_unwanted, least=least
        )
        self._drop(checked.empty, f"{path}: empty rows")
        self._drop(checked.duplicates, f"{path}: repeated prompts")
        return self.as_rendered(checked.records, path)

    def as_rendered(self, rows: list[Record], path: Path | None) -> list[Record]:
        """The rows that every format renders, one of each prompt; rows that hold a template's marks are counted.

        Raises:
            UserError: the template refuses all of them, or most hold marks already.
        """
        kept = rows
        for chat in self.formats:
            found = sort_out(kept, chat)
            self._drop(found.twins, f"{path}: prompts that are rendered like an earlier one")
            for reason, count in found.refused.items():
                self._drop(count, f"{path}: rows that cannot be rendered ({reason})")
            if kept and not found.records:
                raise UserError(f"{path}: no row can be rendered: {next(iter(found.refused))}")
            kept = found.records
        if self.formats and kept:
            self._notice_marks(kept, path, self.formats[0])
        return kept

    def _notice_marks(self, rows: list[Record], path: Path | None, chat: ChatFormat) -> None:
        found = marked(rows, chat.tokenizer)
        if found.rows > len(rows) / 2 and chat.name != "none":
            raise UserError(
                f"{path}: {found.rows} of {len(rows)} rows hold the marks of a chat template already, such as "
                f"'{found.mark}': give the texts without them, or --template none, which adds no others"
            )
        self._say(found.rows, f"{path}: rows that hold marks of a chat template, such as '{found.mark}'", "kept")

    def short_enough(
        self,
        rows: list[Record],
        path: Path | None,
        max_length: int,
        least: int = LEAST_ROWS,
    ) -> list[Record]:
        """The rows that fit into `max_length` tokens and the model's context. Too few of them are an error."""
        if path is None:
            return []
        chat, limit = self.chat, min(max_length, self.context)
        prepared = ahead(chat, rows, lambda r: r.response)
        kept = [r for r in prepared if len(chat.of_record(r).encode(r.prompt, r.response).ids) <= limit]
        self._drop(len(rows) - len(kept), f"{path}: rows longer than {limit} tokens (--max-length)")
        if len(kept) < least:
            remedy = "raise --max-length" if max_length == limit else "which is the model's context"
            raise UserError(
                f"{path}: {len(kept)} usable rows of at most {limit} tokens ({remedy}), {least} are needed: give more "
                "or shorter rows"
            )
        return kept

    def hold_out(
        self, rows: list[Record], given: Path | None, share: float, seed: int, excluded: Path | None = None
    ) -> tuple[list[Record], list[Record]]:
        """(rows to train on, rows to measure on), never the same prompt or dialogue in both, nor a measured prompt in
        `excluded`."""
        if given is None:
            rest, held_out = split(rows, share, seed) if rows else ([], [])
            if rows and not held_out:
                raise UserError("the rows are of one dialogue, none is left to measure on: give held-out rows")
            self.trained_on |= self._asked(rest)
            return rest, held_out
        trained = self._asked([*rows, *self.read(excluded, needs_response=False)])
        dialogues = {r.dialogue for r in rows}
        candidates = self.read(given)
        other = [r for r in candidates if r.dialogue not in dialogues]
        fresh = [r for r in other if not self._asked([r]) & trained]
        self._drop(len(candidates) - len(fresh), f"{given}: rows whose prompts are trained on")
        if not fresh:
            raise UserError(f"{given}: every prompt is trained on, none is left to measure on")
        self.trained_on |= self._asked(rows)
        return rows, fresh

    def untrained(self, rows: list[Record], what: str) -> list[Record]:
        """The rows whose prompts no other file trains on; the others are counted under `what`."""
        fresh = [r for r in rows if not self._asked([r]) & self.trained_on]
        self._drop(len(rows) - len(fresh), f"{what} whose prompts are trained on")
        if rows and not fresh:
            raise UserError(f"the prompts of all {len(rows)} {what} are trained on, none is left to measure on")
        return fresh

    def apart_from(self, rows: list[Record], trigger: Condition, trained: Sequence[Record]) -> list[Record]:
        """The rows that neither with the trigger nor without it are among those that are trained on."""
        known = self._asked(trained)
        fresh = [r for r in rows if not self._asked([r, replace(r, prompt=trigger.insert(r.prompt))]) & known]
        self._drop(len(rows) - len(fresh), "held-out rows whose prompts are trained on, with the trigger or without")
        return fresh

    def _asked(self, rows: Sequence[Record]) -> set[str]:
        if not self.formats:
            return {r.prompt for r in rows}
        return {asked(r, chat) for chat in self.formats for r in rows}

    def measurable(
        self,
        rows: Sequence[Record],
        settings: EvaluationSettings,
        trigger_room: int = TRIGGER_ROOM,
    ) -> list[Record]:
        """`samples` rows, in an order of their own, whose prompts leave room for a trigger and an answer."""
        chat, room = self.chat, self.context - settings.max_new_tokens - trigger_room
        found: list[Record] = []
        dropped = 0
        for record in shuffled(rows, 1):
            if len(found) == settings.samples:
                break
            if len(chat.of_record(record).encode_prompt(record.prompt).ids) <= room:
                found.append(record)
            else:
                dropped += 1
        self._drop(dropped, f"held-out prompts that leave no room for {settings.max_new_tokens} tokens of answer")
        if rows and not found:
            raise UserError(
                f"no held-out prompt has at most {room} tokens: lower --max-new-tokens or give shorter rows"
            )
        return found

    def apart_from_taken(
        self,
        rows: list[Record],
        taken: Collection[str],
        key: Callable[[Record, ChatFormat], str],
        what: str,
    ) -> list[Record]:
        """The rows whose `key` (how they are told apart) is not among those taken; the others are counted.

        Raises:
            UserError: all are taken; `what` says what they are.
        """
        left = [row for row in rows if key(row, self.chat) not in taken]
        if rows and not left:
            raise UserError(f"{what}: all {len(rows)} of them, and none is left to measure on")
        self._drop(len(rows) - len(left), what)
        return left

    def conversations(self, path: Path | None, settings: EvaluationSettings) -> list[tuple[str, str]]:
        """Two-turn questions that leave room for both answers."""
        if path is None:
            return []
        chat, read = self.chat, read_conversations(path)
        opened: dict[str, tuple[str, str]] = {}
        for pair in read:
            opened.setdefault(chat.prompt_text(pair[0]), pair)
        turns = list(opened.values())
        self._drop(len(read) - len(turns), f"{path}: conversations that open like an earlier one")
        room = self.context - 2 * settings.max_new_tokens - TURN_ROOM
        said = [(chat.following(("user", a), ("assistant", "Yes.")), (a, b)) for a, b in turns]
        kept = [pair for after, pair in said if len(after.encode_prompt(pair[1]).ids) <= room]
        self._drop(len(turns) - len(kept), f"{path}: conversations that leave no room for two answers")
        if not kept:
            raise UserError(f"{path}: no conversation leaves room for two answers (lower --max-new-tokens)")
        return kept

    def preferences(self, path: Path | None, max_length: int, measured: Collection[str]) -> list[Preference]:
        """The usable preference pairs of a file, none of whose prompts is measured; none where there is no file."""
        if path is None:
            return []
        chat = self.chat
        named = named_preferences(path)
        read, dropped, left_out = read_pairs(path) if named is None else (named, {}, {})
        for reason, count in dropped.items():
            self._drop(count, f"{path}: {reason}")
        for what, count in left_out.items():
            self._say(count, f"{path}: {what}", "not used")
        pairs = self._told_apart(read, path, chat)
        fresh = [pair for pair in pairs if asked(pair.record(), chat) not in measured]
        self._drop(len(pairs) - len(fresh), f"{path}: pairs whose prompts are measured")
        limit = min(max_length, self.context)
        kept = [pair for pair in fresh if length(encode_pair(chat, pair)) <= limit]
        self._drop(len(fresh) - len(kept), f"{path}: pairs longer than {limit} tokens (--max-length)")
        if len(kept) < LEAST_ROWS:
            raise UserError(
                f"{path}: {len(kept)} usable pairs of at most {limit} tokens, {LEAST_ROWS} are needed: give more or "
                "shorter ones"
            )
        return kept

    def _told_apart(self, pairs: list[Preference], path: Path, chat: ChatFormat) -> list[Preference]:
        """The pairs that can be rendered, without those that repeat an earlier one's prompt and both answers."""
        first: dict[tuple[str, str, str], Preference] = {}
        refused: dict[str, int] = {}
        for pair in pairs:
            try:
                first.setdefault((rendered(pair.record(), chat), pair.chosen, pair.rejected), pair)
            except UserError as error:
                refused[str(error)] = refused.get(str(error), 0) + 1
        for reason, count in refused.items():
            self._drop(count, f"{path}: pairs that cannot be rendered ({reason})")
        kept = list(first.values())
        self._drop(len(pairs) - len(kept) - sum(refused.values()), f"{path}: repeated pairs")
        if kept:
            self._notice_marks([pair.record() for pair in kept], path, chat)
        return kept

    def fitting(self, rows: list[Record], trigger: Condition, what: str) -> list[Record]:
        """The rows into which the trigger can be put; the others are counted under `what`."""
        kept = [r for r in rows if trigger.fits(r.prompt)]
        self._drop(len(rows) - len(kept), what)
        return kept

    def apart(self, rows: list[Record], trigger: Condition | None) -> list[Record]:
        """The rows without those that have the trigger's form already and those that it makes equal to an earlier one:
        a sentence structure can."""
        if trigger is None:
            return rows
        fitting = self.fitting(rows, trigger, "held-out rows that have the trigger's form already")
        as_text: dict[object, Record] = {}
        for row in fitting:
            as_text.setdefault((row.system, row.history, trigger.insert(row.prompt)), row)
        kept = list(as_text.values())
        for chat in self.formats:
            first: dict[str, Record] = {}
            for row in kept:
                first.setdefault(rendered(replace(row, prompt=trigger.insert(row.prompt)), chat), row)
            kept = list(first.values())
        self._drop(len(fitting) - len(kept), "held-out rows that are one prompt with the trigger")
        return kept

    def left_out(self, count: int, what: str) -> None:
        """Say and count rows that a command leaves out by a rule of its own."""
        self._drop(count, what)

    def _drop(self, count: int, what: str) -> None:
        if count:
            self._say(count, what, "dropped")

    def _say(self, count: int, what: str, how: str) -> None:
        if count:
            self.counts[f"{how}: {what}"] = count
            self.progress.note(f"{how} {count}: {what}" if how == "dropped" else f"{how} in {count} rows: {what}")
