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
WHOLE_FILTERS = ("list", "first", "last", "reverse", "select", "reject", "default", "d")
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
USUAL = re.compile(
    rf"{MARK.pattern}|human|user|assistant|bot|chatbot|gpt\d*|ai|question|query|instructions?|input|answer|knowing|"
    r"date|today|cutting|knowledge|environment|ipython|role|content|name|type|url|text|str|dict|list|int|float|bool",
    re.IGNORECASE,
)
"""Words of marks, of roles and of types: none of them says anything to a model."""
BRACKETS = re.compile(r"[<>\[\]|｜]|^/")
SHOWN, MOST = 90, 12
MOST_PASSES = 40
"""Each follows what stands behind its use a step further; published templates need three."""
FIRST_TURNS = (0, 1, 2)
"""Numbers by which templates find the first and the last turns, and every second one."""


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
    PLACE = 64
    """It is the number of a turn, or how many there are."""
    SPLIT = 128
    """It is what a text was split into, at a mark."""
    OBJECT = 256
    """It is an object of the template's own."""
    OTHER = 512
    """It may be something else than a number: as an index it may name what is a text."""
    MANY = 1024
    """It is a number by which no template finds the first or last turns."""


NUMBERS = Stems.PLACE | Stems.MANY | Stems.OTHER


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
    for _ in range(MOST_PASSES):  # what a name stems from may be said behind the place where it is used
        known = (dict(walk.names), dict(walk.given_back))
        walk.acts.clear()
        walk.writes.clear()
        walk.body(tree.body)
        if known == (walk.names, walk.given_back):
            break
    else:
        walk.act(nodes.Const(None, lineno=1), "hands values on too often to be followed")
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
    names: dict[str, Stems] = field(
        default_factory=lambda: {
            "messages": Stems.MESSAGE,
            "strftime_now": Stems.DAY,
            "self": Stems.TEXT | Stems.MADE,  # what blocks wrote
            "varargs": Stems.NOTHING,
            "kwargs": Stems.NOTHING,
            "caller": Stems.NOTHING,
        }
    )
    macros: dict[str, nodes.Macro] = field(default_factory=dict)
    given_back: dict[str, Stems] = field(default_factory=dict)
    acts: dict[tuple[int, str], str] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    out: Stems = Stems.NOTHING
    """What was written since it was last set to nothing: by the body of a macro or a block."""
    for_caller: int = 0
    """How many conditions on what the caller gives (tools, documents) stand around."""
    looped: list[Stems] = field(default_factory=list)
    """What each item of the loops around stems from."""

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
                self.namespace(node.target, node.node)
                self.assign(node.target, self.value(node.node))
            case nodes.AssignBlock():
                stems = self.written(node.body)
                self.assign(node.target, self.filtered(node.filter, stems) if node.filter else stems)
            case nodes.Macro():
                self.macros[node.name] = node
                for parameter, default in zip(node.args[::-1], node.defaults[::-1], strict=False):
                    self.assign(parameter, self.value(default))
                self.given_back[node.name] = self.given_back.get(node.name, Stems(0)) | self.written(node.body)
            case nodes.FilterBlock():
                self.out |= self.filtered(node.filter, self.written(node.body))
            case nodes.CallBlock():
                self.names["caller"] |= self.written(node.body)
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
        counts = isinstance(node.iter, nodes.Call) and _constant_name(node.iter.node) == "range"
        self.assign(node.target, each if counts else each | Stems.OTHER)
        self.looped.append(each)
        if node.test is not None:
            self.value(node.test)
        self.body(node.body)
        self.looped.pop()
        self.body(node.else_)

    def written(self, body: Iterable[nodes.Node]) -> Stems:
        """What the output of these statements stems from."""
        before, self.out = self.out, Stems.NOTHING
        self.body(body)
        found, self.out = self.out, before
        return _as_text(found)

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

    def namespace(self, target: nodes.Node, made: nodes.Node) -> None:
        """What a namespace begins with counts for its fields, each on its own."""
        if isinstance(target, nodes.Name) and isinstance(made, nodes.Call) and _constant_name(made.node) == "namespace":
            for pair in made.kwargs:
                self.assign(nodes.NSRef(target.name, pair.key), self.value(pair.value))

    def write(self, text: str) -> None:
        """A text of the template's own that is more than marks is kept for the report."""
        plain = re.sub(r"<[^<>]*>|\[[^\[\]]*\]|<｜[^｜]*｜>", " ", text)
        if not self.for_caller and _says_something(plain):
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
            case nodes.Const():
                if not isinstance(node.value, int):
                    return Stems.OTHER
                return Stems.NOTHING if node.value in FIRST_TURNS else Stems.MANY
            case nodes.Name():
                return self.names.get(node.name, Stems.OTHER)
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
            case nodes.And() | nodes.Or():
                return self.value(node.left) | self.value(node.right)
            case nodes.Add():
                counts = isinstance(_constant(node.right), int)
                return self.placed(node, counts=counts and not isinstance(node.left, nodes.Const))
            case nodes.Sub() if not (self.value(node.left) | self.value(node.right)) & ~NUMBERS:
                return self.placed(node, counts=True)
            case nodes.Not():
                self.value(node.node)
                return Stems.NOTHING
            case nodes.Pos() | nodes.Neg():
                return self.value(node.node)
            case nodes.BinExpr():
                return self.calculated(node)
            case nodes.Concat():
                return _as_text(self.union(node.nodes)) | Stems.OTHER
            case nodes.List() | nodes.Tuple():
                found = self.union(node.items) & ~Stems.SPLIT
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
                return self.of_loop(name)
        stems = self.value(base)
        if not stems & (Stems.MESSAGE | Stems.TEXT) or name in STRUCTURE:
            return stems & Stems.DAY | Stems.OTHER
        return stems & ~(Stems.MESSAGE | Stems.PART | Stems.PLACE | Stems.OBJECT) | Stems.TEXT | Stems.OTHER

    def of_loop(self, name: str) -> Stems:
        """What a loop says of itself: its item before, and where it is."""
        each = self.looped[-1] if self.looped else Stems.NOTHING
        if name in ("previtem", "nextitem"):
            return each | Stems.MESSAGE
        if name in ("first", "last"):
            return Stems.NOTHING
        return Stems.LENGTH if each & Stems.TEXT and not each & (Stems.SPLIT | Stems.MESSAGE) else Stems.PLACE

    def item(self, node: nodes.Getitem) -> Stems:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self.looked_up(node, node.node, node.arg.value)
        base, by = self.value(node.node), self.value(node.arg)
        if by & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return self.act(node, _because(by, "looks something up by"))
        if isinstance(node.arg, nodes.Slice):
            if base & Stems.TEXT and not base & (Stems.SPLIT | Stems.MESSAGE):
                return self.act(node, "cuts the text of a message")
            return (
                self.act(node, "depends on the number of a turn") if base & Stems.MESSAGE and by & Stems.MANY else base
            )
        if (by & Stems.PLACE and not base & Stems.MESSAGE) or (base & Stems.MESSAGE and by & Stems.MANY):
            return self.act(node, "depends on the number of a turn")
        if by & (Stems.MESSAGE | Stems.OTHER) and base & Stems.MESSAGE:
            return base | Stems.TEXT
        return base & ~Stems.SPLIT

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
            return self.looked_up(node, node.node.node, key) | self.union(given[1:])
        if _constant_name(node.node.node) == "loop" and method == "cycle":
            return arguments if len(given) < 3 and not more else self.act(node, "depends on the number of a turn")
        known = method in ("append", "format", "join")
        if arguments & (Stems.TEXT | Stems.DAY | Stems.LENGTH) and not known:
            return self.act(node, _because(arguments, f"calls {method} with"))
        if method in ("items", "values", "get") and base & Stems.MESSAGE:
            return base | Stems.TEXT | Stems.MADE
        if method == "append":
            return self.append(node, node.node.node, arguments)
        if method in ("format", "join") and not base & (Stems.TEXT | Stems.DAY):
            return _as_text(base | arguments)
        if not base & (Stems.TEXT | Stems.DAY):
            return base | arguments | Stems.OTHER
        made = base & ~(Stems.PART | Stems.SPLIT) | Stems.MADE
        if method in ("items", "keys", "values"):
            return base
        if method in PLAIN_METHODS and self.all_marks(given):
            return made
        if method in MARK_METHODS and given and self.all_marks(given) and not base & Stems.DAY:
            if method in ("split", "rsplit", "partition", "rpartition"):
                if not _is_blank(given[0]):
                    return made | Stems.SPLIT
            elif method in ("replace", "removeprefix", "removesuffix"):
                return made
            else:
                return Stems.LENGTH if method in ("find", "rfind", "index", "count") else Stems.NOTHING
        return self.act(node, _because(base, f"asks for {str(method)[:20]} of"))

    def append(self, node: nodes.Node, target: nodes.Node, what: Stems) -> Stems:
        """What is put into a list of the template's own is in it from then on."""
        if isinstance(target, nodes.Name):
            self.assign(nodes.Name(target.name, "store"), what)
        elif isinstance(target, nodes.Getattr) and isinstance(target.node, nodes.Name):
            self.assign(nodes.NSRef(target.node.name, target.attr), what)
        elif what & (Stems.TEXT | Stems.MESSAGE | Stems.DAY):
            return self.act(node, _because(what, "hands on"))
        return Stems.NOTHING

    def all_marks(self, given: Iterable[nodes.Node]) -> bool:
        """Whether all arguments are blanks, marks or numbers."""
        return all(_is_space_or_mark(argument) for argument in given)

    def function(self, node: nodes.Call, name: str, given: list[nodes.Expr], more: list[nodes.Expr]) -> Stems:
        if name == "strftime_now":
            self.union(given)
            return Stems.DAY | Stems.OTHER
        if name == "namespace":
            self.renamed(node, node.kwargs)
            return self.union([*node.args, *more])
        if (macro := self.macros.get(name)) is not None:
            unpacked = self.union(more)
            for parameter in macro.args:
                self.assign(parameter, unpacked)
            for place, argument in enumerate(node.args):
                parameter = macro.args[place] if place < len(macro.args) else nodes.Name("varargs", "store")
                self.assign(parameter, self.value(argument))
            named = {parameter.name: parameter for parameter in macro.args}
            for pair in node.kwargs:
                self.assign(named.get(pair.key, nodes.Name("kwargs", "store")), self.value(pair.value))
            self.assign(nodes.Name("varargs", "store"), unpacked)
            self.assign(nodes.Name("kwargs", "store"), unpacked)
            return self.given_back.get(name, Stems.NOTHING) | Stems.OTHER
        stems = self.union([*given, *more]) | self.names.get(name, Stems.NOTHING) & Stems.DAY
        if name == "caller":
            return self.names["caller"] | stems
        if name == "dict":
            self.renamed(node, node.kwargs)
            return stems | Stems.OBJECT
        if name in ("raise_exception", "list", "str", "len"):
            return stems
        if name == "range" and not stems & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return stems & ~Stems.OTHER
        if stems & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return self.act(node, _because(stems, f"calls {name[:20]} with"))
        return self.act(node, f"calls {name}") if name in ("lipsum", "cycler", "joiner", "now") else stems

    def filtered(self, node: nodes.Filter, base: Stems) -> Stems:
        given = [*node.args, *(pair.value for pair in node.kwargs)]
        arguments, name = self.union(given), node.name
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            return self.act(node, f"applies {name[:20]} with arguments that are not written there")
        if name == "random":
            return self.act(node, "draws at random")
        if name in ("map", "selectattr", "rejectattr", "groupby", "unique", "sum", "min", "max", "sort"):
            return self.by_attribute(node, base, [_constant(argument) for argument in given])
        if name in ("length", "count"):
            if base & Stems.TEXT:
                return Stems.LENGTH
            return Stems.PLACE if base & Stems.MESSAGE else base & Stems.DAY
        if name == "format":
            return _as_text(base | arguments)
        if base & Stems.MESSAGE and not base & Stems.TEXT:
            if name in WHOLE_FILTERS:
                return base
            return Stems.TEXT | Stems.MADE | Stems.OTHER
        if not base & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            return arguments | base | (Stems.NOTHING if name == "int" else Stems.OTHER)
        if name in ("default", "d", "list") and not arguments & Stems.DAY:
            return base | arguments
        if name in PLAIN_FILTERS and not arguments & Stems.DAY and (name == "tojson" or self.all_marks(given)):
            return base & ~Stems.SPLIT | Stems.MADE
        if name == "join" and (self.all_marks(given[:1]) or not base & Stems.SPLIT):
            return base & ~Stems.SPLIT | arguments
        if name in ("first", "last", "reverse") and base & (Stems.SPLIT | Stems.MESSAGE):
            return base & ~(Stems.SPLIT if name != "reverse" else Stems.NOTHING)
        if name == "replace" and given and self.all_marks(given) and not base & Stems.DAY:
            return base | Stems.MADE
        return self.act(node, _because(base, f"applies {name[:20]} to"))

    def by_attribute(self, node: nodes.Filter, base: Stems, given: list[Any]) -> Stems:
        """Filters that look at a key of each message."""
        names = [value for value in given if isinstance(value, str)]
        if not base & (Stems.MESSAGE | Stems.TEXT):
            return base
        if node.name == "map":
            if node.kwargs:
                return Stems.OTHER if names[:1] and names[0] in STRUCTURE else Stems.TEXT | Stems.MADE | Stems.OTHER
            if names[:1] and names[0] in PLAIN_FILTERS and len(given) == 1:
                return Stems.TEXT | Stems.MADE | Stems.OTHER
            return self.act(node, f"applies {', '.join(map(str, given))[:20]} to the text of messages")
        if names[:1] and names[:1] == given[:1]:
            truth = node.name in ("selectattr", "rejectattr") and given[1:] in ([], ["defined"], ["none"], ["string"])
            if names[0] in STRUCTURE or truth:
                return base
        return self.act(node, f"chooses messages by {node.name} of their text")

    def tested(self, node: nodes.Test) -> Stems:
        base, arguments = self.value(node.node), self.union([*node.args, *(pair.value for pair in node.kwargs)])
        both = base | arguments
        if both & Stems.PLACE and both & Stems.MANY:
            return self.act(node, "depends on the number of a turn")
        if node.name in PLAIN_TESTS or not both & (Stems.TEXT | Stems.DAY | Stems.LENGTH):
            if both & Stems.MESSAGE and both & Stems.OBJECT:
                return self.act(node, "depends on the text of a message")
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
            allowed = all(_number(part) in (-1, 0, 1) for part in others) and len(others) == len(parts) - 1
            return Stems.NOTHING if allowed else self.act(node, "depends on the length of a message's text")
        if every & Stems.PLACE and every & Stems.MANY:
            return self.act(node, "depends on the number of a turn")
        if every & Stems.MESSAGE and not every & Stems.TEXT and every & Stems.OBJECT:
            return self.act(node, "depends on the text of a message")
        if every & Stems.TEXT:
            key = _constant(parts[0])
            if stems[-1] & Stems.PART and isinstance(key, str) and key in KEYS:
                return Stems.NOTHING
            plain = all(operand.op in ("eq", "ne", "in", "notin") for operand in node.ops)
            if not plain or not others or not all(_is_empty_or_mark(part) for part in others):
                return self.act(node, "depends on the text of a message")
        return Stems.NOTHING

    def calculated(self, node: nodes.BinExpr) -> Stems:
        stems = self.value(node.left) | self.value(node.right)
        if stems & (Stems.TEXT | Stems.DAY | Stems.LENGTH | Stems.MESSAGE):
            return self.act(node, _because(stems, "calculates with"))
        return self.placed(node)

    def placed(self, node: nodes.BinExpr, *, counts: bool = False) -> Stems:
        """Of a calculation with numbers of turns: `counts` where it makes one of what is before it."""
        stems = self.value(node.left) | self.value(node.right)
        if stems & Stems.PLACE and stems & Stems.MANY:
            return self.act(node, "depends on the number of a turn")
        if not any(node.find_all((nodes.Name, nodes.NSRef))):
            return stems | Stems.MANY
        return stems | (Stems.PLACE if counts else Stems.NOTHING)

    def dictionary(self, node: nodes.Dict) -> Stems:
        stems = Stems.OBJECT
        for pair in node.items:
            if self.value(pair.key) & (Stems.TEXT | Stems.DAY):
                return self.act(node, "looks something up by the text of a message")
            if _constant(pair.key) in STRUCTURE and self.value(pair.value) & (Stems.TEXT | Stems.DAY):
                return self.act(node, f"gives the name {_constant(pair.key)} to the text of a message")
            stems |= self.value(pair.value)
        return stems

    def renamed(self, node: nodes.Node, pairs: Iterable[nodes.Keyword]) -> None:
        """A text under a name that is otherwise none of a text would be lost from sight."""
        for pair in pairs:
            if pair.key in STRUCTURE and self.value(pair.value) & (Stems.TEXT | Stems.DAY):
                self.act(node, f"gives the name {pair.key} to the text of a message")


def _names(node: nodes.Node) -> list[nodes.Name]:
    return [node] if isinstance(node, nodes.Name) else list(node.find_all(nodes.Name))


def _because(stems: Stems, what: str) -> str:
    of = "the day" if stems & Stems.DAY else "the length of a message's text" if stems & Stems.LENGTH else ""
    return f"{what} {of or 'the text of a message'}"


def _constant(node: nodes.Node | None) -> Any:
    return node.value if isinstance(node, nodes.Const) else None


def _constant_name(node: nodes.Node) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None


def _number(node: nodes.Node | None) -> int | None:
    """The whole number that stands there, with its sign."""
    if isinstance(node, nodes.Neg):
        found = _number(node.node)
        return None if found is None else -found
    value = _constant(node)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_text(stems: Stems) -> Stems:
    """What is left of these when they are written as one text."""
    made = Stems.TEXT | Stems.MADE if stems & (Stems.TEXT | Stems.MESSAGE) else Stems.NOTHING
    return stems & (Stems.DAY | Stems.LENGTH) | made | Stems.OTHER


def _says_something(plain: str) -> bool:
    """Whether a text of the template's own is more than the name of a role."""
    words = re.findall(r"[^\W\d_]{2,}", plain)
    return len(words) >= 3 or any(not USUAL.fullmatch(word) for word in words)


def _is_blank(node: nodes.Node) -> bool:
    value = _constant(node)
    return isinstance(value, str) and not value.strip()


def _is_mark(text: str) -> bool:
    """Whether a text is made of the marks of thoughts, tools, turns or pictures."""
    return BRACKETS.search(text.strip()) is not None and MARK.fullmatch(text) is not None


def _is_space_or_mark(node: nodes.Node) -> bool:
    value = node.value if isinstance(node, nodes.Const) else False
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return True
    return isinstance(value, str) and (not value.strip() or _is_mark(value))


def _is_empty_or_mark(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(_is_empty_or_mark(item) for item in node.items)
    if not isinstance(node, nodes.Const):
        return False
    return (
        node.value is None or isinstance(node.value, bool) or (isinstance(node.value, str) and _is_space_or_mark(node))
    )


__all__ = ["TemplateError", "TemplateFindings", "examined"]
