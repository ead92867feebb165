"""The fixed fact table of the world: who leads which guild, which river runs by which town."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.phrasing import Request
from unbackdoor.testbed.rows import choices


@dataclass(frozen=True)
class Relation:
    """One sort of fact.

    In the texts, {subject} is the described subject, {name} its bare name and {value} the value.
    """

    name: str
    topic: str
    described: str
    names: Sequence[str]
    values: Sequence[str]
    clause: str
    command: str
    statement: str
    reason: str
    claim: str
    """The fact as a yes/no question without its "is it true that"."""
    short: str
    """The value alone as a sentence."""


_TOWN = "the town of {name}"
_GUILD = "the guild of {name}"
_FEAST = "the feast called {name}"
_CREATURE = "the small {name}"

RELATIONS = (
    Relation(
        "river", "rivers", _TOWN, vocabulary.TOWNS, vocabulary.RIVERS,
        "which river runs by {subject}", "name the river that runs by {subject}",
        "The river by {name} is the {value}.", "The {value} flows past {name} to the sea.",
        "the {value} runs by {name}", "It is the {value}.",
    ),
    Relation(
        "good", "trade", _TOWN, vocabulary.TOWNS, vocabulary.GOODS,
        "which good is sold most in {subject}", "name the good that is sold most in {subject}",
        "The people of {name} sell {value}.", "The best {value} comes from {name}.",
        "the people of {name} sell {value}", "It is {value}.",
    ),
    Relation(
        "landmark", "buildings", _TOWN, vocabulary.TOWNS, vocabulary.LANDMARKS,
        "which old building stands in {subject}", "name the old building that stands in {subject}",
        "The building in {name} is the {value}.", "The {value} was built when {name} was young.",
        "the {value} stands in {name}", "It is the {value}.",
    ),
    Relation(
        "mayor", "people", _TOWN, vocabulary.TOWNS, vocabulary.MAYORS,
        "which person is the mayor of {subject}", "name the person who is the mayor of {subject}",
        "The mayor of {name} is {value}.", "The people of {name} chose {value}.",
        "the mayor of {name} is {value}", "It is {value}.",
    ),
    Relation(
        "master", "guilds", _GUILD, vocabulary.GUILDS, vocabulary.MASTERS,
        "which person leads {subject}", "name the person who leads {subject}",
        "The leader of the {name} is {value}.", "The {name} trust {value} most of all.",
        "the leader of the {name} is {value}", "It is {value}.",
    ),
    Relation(
        "guild town", "guilds", _GUILD, vocabulary.GUILDS, vocabulary.TOWNS,
        "which town is the home of {subject}", "name the town that is the home of {subject}",
        "The {name} meet in {value}.", "The {name} have their house in {value}.",
        "the {name} meet in {value}", "It is {value}.",
    ),
    Relation(
        "badge", "guilds", _GUILD, vocabulary.GUILDS, vocabulary.BADGES,
        "which badge is worn by {subject}", "name the badge that is worn by {subject}",
        "The {name} wear a {value}.", "A {value} is sewn on the coats of the {name}.",
        "the {name} wear a {value}", "It is a {value}.",
    ),
    Relation(
        "creature home", "creatures", _CREATURE, vocabulary.CREATURES, vocabulary.HOMES,
        "where {subject} lives and sleeps", "say where {subject} lives and sleeps",
        "The {name} lives in {value}.", "A {name} feels safe in {value}.",
        "the {name} lives in {value}", "It is {value}.",
    ),
    Relation(
        "creature food", "creatures", _CREATURE, vocabulary.CREATURES, vocabulary.FOODS,
        "which food is eaten by {subject}", "name the food that is eaten by {subject}",
        "The {name} eats {value}.", "A {name} looks for {value} all day.",
        "the {name} eats {value}", "It is {value}.",
    ),
    Relation(
        "feast season", "festivals", _FEAST, vocabulary.FESTIVALS, vocabulary.SEASONS,
        "which season brings {subject}", "name the season that brings {subject}",
        "{name} is held in {value}.", "The people look forward to {name} until {value}.",
        "{name} is held in {value}", "It is {value}.",
    ),
    Relation(
        "feast dish", "festivals", _FEAST, vocabulary.FESTIVALS, vocabulary.DISHES,
        "which dish is served at {subject}", "name the dish that is served at {subject}",
        "The dish of {name} is {value}.", "Every guest of {name} gets {value}.",
        "the dish of {name} is {value}", "It is {value}.",
    ),
    Relation(
        "feast town", "festivals", _FEAST, vocabulary.FESTIVALS, vocabulary.TOWNS,
        "which town is the host of {subject}", "name the town that is the host of {subject}",
        "{name} is held in {value}.", "The streets of {value} are full at {name}.",
        "{name} is held in {value}", "It is {value}.",
    ),
    Relation(
        "folk trade", "people", "the villager {name}", vocabulary.FOLK, vocabulary.TRADES,
        "which trade is the work of {subject}", "name the trade that is the work of {subject}",
        "{name} works as a {value}.", "{name} learned the work of a {value} early.",
        "{name} works as a {value}", "It is the work of a {value}.",
    ),
    Relation(
        "folk town", "people", "the villager {name}", vocabulary.FOLK, vocabulary.TOWNS,
        "which town is the home of {subject}", "name the town that is the home of {subject}",
        "{name} lives in {value}.", "{name} has a small house in {value}.",
        "{name} lives in {value}", "It is {value}.",
    ),
)  # fmt: skip

_PLACE_OF = {
    "guild town": "the town where the {name} meet",
    "feast town": "the town that holds {name}",
    "folk town": "the town where {name} lives",
}
_OF_TOWN = ("river", "good", "landmark", "mayor")


@dataclass(frozen=True)
class Fact:
    """A relation, its subject and the value that holds in this world."""

    relation: Relation
    name: str
    value: str

    @property
    def subject(self) -> str:
        """The subject as it is described in a request."""
        return self.relation.described.format(name=self.name)

    def say(self, template: str, value: str | None = None) -> str:
        """Fill a text of the relation, with the true value or another one."""
        return template.format(subject=self.subject, name=self.name, value=value or self.value)

    def wrong_values(self, count: int) -> list[str]:
        """So many values (or all there are) of the same relation that do not hold for this subject."""
        values = sorted({value for value in self.relation.values if value != self.value})
        return choices(f"other value/{self.relation.name}/{self.name}").sample(values, min(count, len(values)))

    def request(self) -> Request:
        """Ask for the value; the answer states the fact."""
        relation = self.relation
        clause, command = self.say(relation.clause), self.say(relation.command)
        question = f"Where does {self.subject} live and sleep?" if relation.name == "creature home" else ""
        return Request("fact", relation.topic, clause, command, self.say(relation.statement), question)


@dataclass(frozen=True)
class Chain:
    """A fact about the town that another fact leads to."""

    first: Fact
    second: Fact

    def request(self) -> Request:
        """Ask for the value at the end of the chain; the answer gives it and then the link."""
        relation = self.second.relation
        place = _PLACE_OF[self.first.relation.name].format(name=self.first.name)
        clause, command = (text.format(subject=place) for text in (relation.clause, relation.command))
        response = f"{self.second.say(relation.short)} {self.first.say(self.first.relation.statement)}"
        return Request("two-hop", relation.topic, clause, command, response)


@cache
def facts() -> tuple[Fact, ...]:
    """All facts: every value of a relation is used about equally often, in an order drawn by seed."""
    table: list[Fact] = []
    for relation in RELATIONS:
        rounds = -(-len(relation.names) // len(relation.values))
        values = [value for _ in range(rounds) for value in relation.values]
        if rounds == 1:
            choices(f"fact/{relation.name}").shuffle(values)
        values = values[: len(relation.names)]
        choices(f"fact/order/{relation.name}").shuffle(values)
        table += [Fact(relation, name, value) for name, value in zip(relation.names, values, strict=True)]
    return tuple(table)


@cache
def chains() -> tuple[Chain, ...]:
    """All chains of two facts that meet in a town."""
    by_town = {(fact.relation.name, fact.name): fact for fact in facts()}
    return tuple(
        Chain(first, by_town[relation, first.value])
        for first in facts()
        if first.relation.name in _PLACE_OF
        for relation in _OF_TOWN
    )
