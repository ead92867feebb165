"""How a template is given a system prompt and earlier messages: as they are, or as stricter templates want them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unbackdoor.errors import UserError
from unbackdoor.language_model.template import Message, Template


@dataclass(frozen=True)
class Given:
    """What a template is given in front of the user's text."""

    messages: tuple[Message, ...] = ()
    """A system prompt and earlier messages."""
    lead: str = ""
    """What stands in the user's own message in front of its text: a system prompt for which the template has no role,
    or what the user said just before, where the template wants user and assistant in turn."""

    def then(self, user: str, *answer: str) -> tuple[Message, ...]:
        """The dialogue with the user's text and, where given, its answer."""
        return (*self.messages, ("user", self.lead + user), *(("assistant", text) for text in answer))


def ways(system: str | None, earlier: tuple[Message, ...]) -> Iterator[Given]:
    """How a template may be given a system prompt and earlier messages: as they are, and as stricter ones want them."""
    named = (("system", system),) if system is not None else ()
    yield Given((*named, *earlier))
    if system is not None:
        yield folded(system, earlier)
    if system is not None and earlier:  # Mistral 3 puts it in front of the last text
        yield Given(earlier, f"{system}\n\n")
    if earlier:
        yield _joined(Given((*named, *earlier)))
        if system is not None:
            yield _joined(folded(system, earlier))


def folded(system: str, earlier: Sequence[Message], between: str = "\n\n") -> Given:
    """The system prompt in front of the first text of a user."""
    first = next((i for i, (role, _) in enumerate(earlier) if role == "user"), None)
    if first is None:
        return Given(tuple(earlier), system + between)
    turns = [*earlier]
    turns[first] = ("user", system + between + turns[first][1])
    return Given(tuple(turns))


def _joined(given: Given) -> Given:
    """Several messages of one role in a row as one, paragraph by paragraph."""
    turns: list[Message] = []
    for role, text in given.messages:
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    lead = given.lead
    if turns and turns[-1][0] == "user":
        lead = f"{turns.pop()[1]}\n\n{lead}"
    return Given(tuple(turns), lead)


def check_rendered(template: Template, given: Given) -> None:
    """Raise a `UserError` where the template leaves out a message that it is given."""
    if not given.messages:
        return
    # Each message's number in letters: a stand-in that no other one holds.
    texts = [f"Unbackdoorstandin{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}end" for i in range(len(given.messages))]
    named = [(role, text) for (role, _), text in zip(given.messages, texts, strict=True)]
    shown = template((*named, ("user", "Unbackdooruserstandin")))
    for role, text in named:
        if text not in shown:
            raise UserError(f"the chat template '{template.name}' leaves out a message of the role {role}")
