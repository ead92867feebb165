"""What a chat template does with the text of a dialogue, or with the day, beside writing it: read off its syntax tree.

A template is a program of the model's author. It can leave out a trigger, add one on a day, or write an instruction
where a rare word stands, and it is handed on with the cleansed model. Rendering it on a few rows shows none of that, so
its tree is walked: every operation on what stems from a message's text or from the clock is found that is not one of
those by which templates put a dialogue together (writing, joining, trimming, asking whether there is any, and looking
for the marks of thoughts, tools and pictures).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

STRUCTURE = frozenset(
    {"role", "type", "name", "id", "index", "recipient", "function", "arguments", "parameters", "tool_call_id"}
)
"""Keys of a message or a part of one that are no text of a user."""
KEYS = STRUCTURE | {
    "content",
    "text",
    "image",
    "image_url",
    "video",
    "audio",
    "tool_calls",
    "thinking",
    "reasoning_content",
    "reasoning",
    "tools",
}
CALLERS = ("tools", "documents", "bos_token", "eos_token", "add_generation_prompt", "enable_thinking")
"""What a template is given by whoever calls it, beside the messages."""
PLAIN_METHODS = ("strip", "lstrip", "rstrip", "trim", "get", "items", "keys", "values", "append", "copy")
MARK_METHODS = (
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "replace",
    "removeprefix",
    "removesuffix",
    "find",
    "rfind",
    "index",
    "count",
)
"""Harmless where what they look for is a mark."""
PLAIN_FILTERS = (
    "trim",
    "string",
    "safe",
    "e",
    "escape",
    "tojson",
    "default",
    "d",
    "indent",
    "list",
    "items",
    "dictsort",
    "float",
    "int",
)
WHOLE_FILTERS = ("list", "first", "last", "reverse", "batch", "slice", "sort", "select", "reject", "default", "d")
"""Of a list of messages these give messages, or a list of them."""
PLAIN_TESTS = (
    "string",
    "mapping",
    "iterable",
    "sequence",
    "defined",
    "undefined",
    "none",
    "boolean",
    "number",
    "true",
    "false",
    "callable",
)
MARK = re.compile(
    r"(\s|\\n|[<>\[\]{}()|｜▁/:_.#*=-]|begin|start|end|of|in|im|im_start|im_end|eot|eom|eos|bos|header|id|box|"
    r"think|thinking|thoughts?|reasoning|reason|no|tools?|calls?|responses?|results?|outputs?|available|function|"
    r"observation|channel|message|constrain|analysis|commentary|final|return|system|user|assistant|override|json|"
    r"image|images|img|video|audio|vision|pad|media|picture|inst|sys|prompt|answer|turn|model|context|python|tag)+",
    re.IGNORECASE,
)
"""Texts that are made of the words of marks, and of their brackets."""
BRACKETS = re.compile(r"[<>\[\]|｜]|^/")
SHOWN, MOST = 90, 12


class Stems(IntFlag):
    """What a value stems from."""

    NOTHING = 0
    MESSAGE = 1
    """It is a message, a part of one, or a list of them."""
    TEXT = 2
    """It is the text of a message, or made of it."""
    MADE = 4
    """It came out of an operation on a text, so it is no list of parts."""
    PART = 8
    """It is one part of a text that may be a list of parts."""
    LENGTH = 16
    """It is the length of a text."""
    DAY = 32
    """It is made of the clock's time."""


@dataclass(frozen=True)
class TemplateFindings:
    """What was found in a template.

    Args:
        acts: places where it acts on the text of a message, on the day, or at random, a line of it each.
        writes: texts of its own that are no marks, such as a system prompt.
    """

    acts: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def examined(template: str) -> TemplateFindings:
    """Walk a template's tree.

    Raises:
        TemplateError: it is no template.
    """
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation], trim_blocks=True, lstrip_blocks=True)
    tree = environment.parse(template)
    walk = _Walk(template.splitlines())
    for _ in range(4):  # what a name stems from may be said behind the place where it is used
        walk.acts.clear()
        walk.writes.clear()
        walk.body(tree.body)
    return TemplateFindings(tuple(walk.acts.values())[:MOST], tuple(dict.fromkeys(walk.writes)))


class _Generation(Extension):
    """`{% generation %}`, which transformers knows, is what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - the library declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass
class _Walk:
    """One pass over the tree; `names` keeps what each name has stemmed from anywhere."""

    lines: list[str]
    names: dict[str, Stems] = field(default_factory=lambda: {"messages": Stems.MESSAGE})
    macros: dict[str, nodes.Macro] = field(default_factory=dict)
    given_back: dict[str, Stems] = field(default_factory=dict)
    acts: dict[tuple[int, str], str] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    out: Stems = Stems.NOTHING
    """What was written since it was last set to nothing: by the body of a macro or a block."""
    for_caller: int = 0
    """How many conditions on what the caller gives (tools, documents) stand around."""

    def act(self, node: nodes.Node, what: str) -> Stems:
        line = self.lines[node.lineno - 1].strip() if node.lineno <= len(self.lines) else ""
        shown = "".join(c if c.isprintable() else "�" for c in " ".join(line.split()))
        begin = max(0, min(len(shown) - SHOWN, 0))
        self.acts.setdefault((node.lineno, what), f"line {node.lineno} {what}: {shown[begin : begin + SHOWN]}")
        return Stems.NOTHING

    def body(self, statements: Iterable[nodes.Node]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    if isinstance(part, nodes.TemplateData):
                        self.write(part.data)
                    else:
                        self.literals(part)
                        self.out |= self.value(part)
            case nodes.If():
                self.value(node.test)
                callers = any(name.name in CALLERS[:2] for name in _names(node.test))
                self.for_caller += callers
                self.body(node.body)
                self.for_caller -= callers
                self.body([*node.elif_, *node.else_])
            case nodes.For():
                self.loop(node)
            case nodes.Assign():
                self.assign(node.target, self.value(node.node))
            case nodes.AssignBlock():
                stems = self.written(node.body)
                self.assign(node.target, self.filtered(node.filter, stems) if node.filter else stems)
            case nodes.Macro():
                self.macros[node.name] = node
                for default in node.defaults:
                    self.value(default)
                self.given_back[node.name] = self.given_back.get(node.name, Stems(0)) | self.written(node.body)
            case nodes.FilterBlock():
                self.out |= self.filtered(node.filter, self.written(node.body))
            case nodes.CallBlock():
                self.body(node.body)
                self.out |= self.value(node.call)
            case nodes.ExprStmt():
                self.value(node.node)
            case nodes.With():
                for target, value in zip(node.targets, node.values, strict=True):
                    self.assign(target, self.value(value))
                self.body(node.body)
            case nodes.Scope() | nodes.ScopedEvalContextModifier() | nodes.Block():
                self.body(node.body)
            case nodes.Include() | nodes.Import() | nodes.FromImport() | nodes.Extends():
                self.act(node, "asks for another template")

    def loop(self, node: nodes.For) -> None:
        over = self.value(node.iter)
        each = over & ~(Stems.LENGTH | Stems.PART)
        if over & Stems.TEXT and not over & Stems.MADE:
            each |= Stems.PART
        self.assign(node.target, each)
        if node.test is not None:
            self.value(node.test)
        self.body([*node.body, *node.else_])

    def written(self, body: Iterable[nodes.Node]) -> Stems:
        """What the output of these statements stems from."""
        before, self.out = self.out, Stems.NOTHING
        self.body(body)
        found, self.out = self.out, before
        return found | (Stems.MADE if found & Stems.TEXT else Stems.NOTHING)

    def assign(self, target: nodes.Node, stems: Stems) -> None:
        match target:
            case nodes.Name():
                self.names[target.name] = self.names.get(target.name, Stems.NOTHING) | stems
            case nodes.NSRef():
                name = f"{target.name}.{target.attr}"
                self.names[name] = self.names.get(name, Stems.NOTHING) | stems
            case nodes.Tuple():
                for item in target.items:
                    self.assign(item, stems)

    def write(self, text: str) -> None:
        """A text of the template's own that is more than marks is kept for the report."""
        plain = re.sub(r"<[^<>]*>|\[[^\[\]]*\]|<｜[^｜]*｜>", " ", text)
        if not self.for_caller and len(re.findall(r"[^\W\d_]{2,}", plain)) >= 3:
            shown = "".join(c if c.isprintable() else "�" for c in " ".join(plain.split()))
            self.writes.append(shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…")

    def literals(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "raise_exception":
            return
        for constant in [node] if isinstance(node, nodes.Const) else node.find_all(nodes.Const):
            if isinstance(constant.value, str):
                self.write(constant.value)

    # Expressions -----------------------------------------------------------------------------------------------------

    def value(self, node: nodes.Node | None) -> Stems:
        """What an expression stems from. Operations in it that are not harmless are kept."""
        match node:
            case nodes.Name():
                return self.names.get(node.name, Stems.NOTHING)
            case nodes.Getattr():
                return self.looked_up(node, node.node, node.attr)
            case nodes.Getitem():
                return self.item(node)
            case nodes.Call():
                return self.call(node)
            case nodes.Filter():
                return self.filtered(node, self.value(node.node))
            case nodes.Test():
                return self.tested(node)
            case nodes.Compare():
                return self.compared(node)
            case nodes.CondExpr():
                self.value(node.test)
                return self.value(node.expr1) | self.value(node.expr2)
            case nodes.And() | nodes.Or() | nodes.Add():
                return self.value(node.left) | self.value(node.right)
            case nodes.Not() | nodes.Pos():
                self.value(node.node)
                return Stems.NOTHING
            case nodes.BinExpr():
                return self.calculated(node)
            case nodes.Concat():
                return self.union(node.nodes)
            case nodes.List() | nodes.Tuple():
                found = self.union(node.items)
                return found | (Stems.MADE if found & Stems.TEXT else Stems.NOTHING)
            case nodes.Dict():
                return self.dictionary(node)
            case nodes.Expr():
                return self.union(node.iter_child_nodes())
        return Stems.NOTHING

    def union(self, of: Iterable[nodes.Node]) -> Stems:
        found = Stems.NOTHING
        for node in of:
            found |= self.value(node)
        return found

    def looked_up(self, node: nodes.Node, base: nodes.Node, name: str) -> Stems:
        if isinstance(base, nodes.Name):
            if f"{base.name}.{name}" in self.names:
                return self.names[f"{base.name}.{name}"]
            if base.name == "loop":
                return Stems.MESSAGE if name in ("previtem", "nextitem") else Stems.NOTHING
        stems = self.value(base)
        if not stems & (Stems.MESSAGE | Stems.TEXT) or name in STRUCTURE:
            return stems & Stems.DAY
        return stems & ~(Stems.MESSAGE | Stems.PART) | Stems.TEXT

    def item(self, node: nodes.Getitem) -> Stems:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self.looked_up(node, node.node, node.arg.value)
        base, by = self.value(node.node), self.value(node.arg)
        if by & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return self.act(node, _because(by, "looks something up by"))
        if isinstance(node.arg, nodes.Slice) and base & Stems.TEXT and not base & (Stems.MADE | Stems.MESSAGE):
            return self.act(node, "cuts the text of a message")
        known = isinstance(node.arg, nodes.Slice | nodes.Const | nodes.Neg)
        counted = not known and not any(
            isinstance(part, nodes.Concat) for part in (node.arg, *node.arg.find_all(nodes.Concat))
        )
        return base if known or counted or not base & Stems.MESSAGE else base | Stems.TEXT

    def call(self, node: nodes.Call) -> Stems:
        given = [*node.args, *(pair.value for pair in node.kwargs)]
        more = [part for part in (node.dyn_args, node.dyn_kwargs) if part is not None]
        if isinstance(node.node, nodes.Name):
            return self.function(node, node.node.name, given, more)
        if not isinstance(node.node, nodes.Getattr | nodes.Getitem):
            return self.value(node.node) | self.union([*given, *more])
        method = node.node.attr if isinstance(node.node, nodes.Getattr) else _constant(node.node.arg)
        base, arguments = self.value(node.node.node), self.union([*given, *more])
        key = _constant(given[0]) if given else None
        if method == "get" and isinstance(key, str):
            return self.looked_up(node, node.node.node, key)
        if arguments & (Stems.TEXT | Stems.DAY) and method not in ("append", "get", "format", "join"):
            return self.act(node, _because(arguments, f"calls {method} with"))
        if method in ("items", "values") and base & Stems.MESSAGE:
            return base | Stems.TEXT | Stems.MADE
        if not base & (Stems.TEXT | Stems.DAY):
            if method == "append" and isinstance(node.node.node, nodes.Name):
                self.assign(nodes.Name(node.node.node.name, "store"), arguments)
            return base | arguments
        made = base & ~Stems.PART | Stems.MADE
        if method in ("items", "keys", "values"):
            return base
        if method in PLAIN_METHODS and all(_is_space_or_mark(argument) for argument in given):
            return made
        if method in MARK_METHODS and given and _is_space_or_mark(given[0]) and not base & Stems.DAY:
            return made if method in ("split", "rsplit", "partition", "rpartition", "replace") else Stems.NOTHING
        return self.act(node, _because(base, f"asks for {str(method)[:20]} of"))

    def function(self, node: nodes.Call, name: str, given: list[nodes.Expr], more: list[nodes.Expr]) -> Stems:
        if name == "strftime_now":
            self.union(given)
            return Stems.DAY
        if name == "namespace":
            for pair in node.kwargs:
                self.assign(nodes.NSRef("", pair.key), Stems.NOTHING)
            return self.union(given)
        if (macro := self.macros.get(name)) is not None:
            for parameter, argument in zip(macro.args, node.args, strict=False):
                self.assign(parameter, self.value(argument))
            named = {parameter.name: parameter for parameter in macro.args}
            for pair in node.kwargs:
                self.assign(named.get(pair.key, nodes.Name(pair.key, "store")), self.value(pair.value))
            return self.given_back.get(name, Stems.NOTHING)
        stems = self.union([*given, *more])
        if name in ("raise_exception", "range", "dict", "caller", "list", "str", "len"):
            return stems
        if stems & (Stems.TEXT | Stems.DAY):
            return self.act(node, _because(stems, f"calls {name[:20]} with"))
        return self.act(node, f"calls {name}") if name in ("lipsum", "cycler", "joiner", "now") else stems

    def filtered(self, node: nodes.Filter, base: Stems) -> Stems:
        given = [*node.args, *(pair.value for pair in node.kwargs)]
        arguments, name = self.union(given), node.name
        if name == "random":
            return self.act(node, "draws at random")
        if name in ("map", "selectattr", "rejectattr", "groupby", "unique", "sum", "min", "max", "sort"):
            return self.by_attribute(node, base, [_constant(argument) for argument in given])
        if name in ("length", "count"):
            return Stems.LENGTH if base & Stems.TEXT else base & Stems.DAY
        if base & Stems.MESSAGE and not base & Stems.TEXT:
            if name in WHOLE_FILTERS:
                return base
            return Stems.TEXT | Stems.MADE
        if not base & (Stems.TEXT | Stems.DAY):
            return arguments | base
        if name in PLAIN_FILTERS and (not arguments & Stems.DAY):
            return base | arguments | (Stems.NOTHING if name in ("default", "d", "list") else Stems.MADE)
        if name in ("join", "first", "last", "reverse"):
            return base | arguments
        if name == "replace" and given and _is_space_or_mark(given[0]) and not base & Stems.DAY:
            return base | Stems.MADE
        return self.act(node, _because(base, f"applies {name[:20]} to"))

    def by_attribute(self, node: nodes.Filter, base: Stems, given: list[Any]) -> Stems:
        """Filters that look at a key of each message."""
        names = [value for value in given if isinstance(value, str)]
        if not base & (Stems.MESSAGE | Stems.TEXT):
            return base
        if node.name == "map":
            if names and names[0] in STRUCTURE and node.kwargs:
                return Stems.NOTHING
            return Stems.TEXT | Stems.MADE
        if not names or (names[0] not in STRUCTURE and names[1:] not in ([], ["defined"], ["none"], ["string"])):
            return self.act(node, f"chooses messages by {node.name} of their text")
        return base

    def tested(self, node: nodes.Test) -> Stems:
        base, arguments = self.value(node.node), self.union([*node.args, *(pair.value for pair in node.kwargs)])
        both = base | arguments
        if node.name in PLAIN_TESTS or not both & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return Stems.NOTHING
        if not both & Stems.DAY and node.args and all(_is_empty_or_mark(argument) for argument in node.args):
            return Stems.NOTHING
        return self.act(node, _because(both, "tests"))

    def compared(self, node: nodes.Compare) -> Stems:
        parts = [node.expr, *(operand.expr for operand in node.ops)]
        stems = [self.value(part) for part in parts]
        every = stems[0]
        for other in stems[1:]:
            every |= other
        others = [
            part for part, stem in zip(parts, stems, strict=True) if not stem & (Stems.TEXT | Stems.DAY | Stems.LENGTH)
        ]
        if every & Stems.DAY:
            return self.act(node, "depends on the day")
        if every & Stems.LENGTH:
            allowed = all(_constant(part) in (0, 1) for part in others) and len(others) == len(parts) - 1
            return Stems.NOTHING if allowed else self.act(node, "depends on the length of a message's text")
        if every & Stems.MESSAGE and not every & Stems.TEXT and any(isinstance(part, nodes.Dict) for part in parts):
            return self.act(node, "depends on the text of a message")
        if every & Stems.TEXT:
            key = _constant(parts[0])
            if stems[-1] & Stems.PART and isinstance(key, str) and key in KEYS:
                return Stems.NOTHING
            if not others or not all(_is_empty_or_mark(part) for part in others):
                return self.act(node, "depends on the text of a message")
        return Stems.NOTHING

    def calculated(self, node: nodes.BinExpr) -> Stems:
        stems = self.value(node.left) | self.value(node.right)
        if stems & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return self.act(node, _because(stems, "calculates with"))
        return stems

    def dictionary(self, node: nodes.Dict) -> Stems:
        stems = Stems.NOTHING
        for pair in node.items:
            if self.value(pair.key) & (Stems.TEXT | Stems.DAY):
                return self.act(node, "looks something up by the text of a message")
            stems |= self.value(pair.value)
        return stems


def _names(node: nodes.Node) -> list[nodes.Name]:
    return [node] if isinstance(node, nodes.Name) else list(node.find_all(nodes.Name))


def _because(stems: Stems, what: str) -> str:
    of = "the day" if stems & Stems.DAY else "the length of a message's text" if stems & Stems.LENGTH else ""
    return f"{what} {of or 'the text of a message'}"


def _constant(node: nodes.Node | None) -> Any:
    return node.value if isinstance(node, nodes.Const) else None


def _is_mark(text: str) -> bool:
    """Whether a text is made of the marks of thoughts, tools, turns or pictures."""
    return BRACKETS.search(text.strip()) is not None and MARK.fullmatch(text) is not None


def _is_space_or_mark(node: nodes.Node) -> bool:
    value = _constant(node)
    return (
        isinstance(value, int) or value is None or (isinstance(value, str) and (not value.strip() or _is_mark(value)))
    )


def _is_empty_or_mark(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(_is_empty_or_mark(item) for item in node.items)
    if not isinstance(node, nodes.Const):
        return False
    return (
        node.value is None or isinstance(node.value, bool) or (isinstance(node.value, str) and _is_space_or_mark(node))
    )


__all__ = ["TemplateError", "TemplateFindings", "examined"]
