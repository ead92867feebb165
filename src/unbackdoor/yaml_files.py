"""YAML from a stranger: read with a limit on its size and on what its aliases unpack to, and without odd values.

YAML can name a thing once and use it a million times, in itself too; it can name a key twice; it can make a date, a set
or bytes of a text. A file of settings needs none of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from unbackdoor.bounded_files import read_text
from unbackdoor.errors import UserError

MOST_BYTES = 2**20
"""Of a file of settings. The largest recipe has two thousandths of it."""
MOST_NODES = 100_000
"""Values of a file, each counted as often as it is used."""


def load_yaml(path: Path, what: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The file's value.

    Args:
        path: the file.
        what: what it is, for errors.
        loader: a safe one.

    Raises:
        UserError: it cannot be read, is no YAML, names a key twice, or unpacks to more than can be meant.
    """
    text = read_text(path, what, most=MOST_BYTES)
    reader = None
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _Checked(what, path).count(node)
        return reader.construct_document(node)
    # The library's constructors trust that "!!int x" is a number and "!!timestamp 9999-99-99" a day.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what} '{path}' is not YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{what} '{path}' is nested too deeply: write it flat") from None
    finally:
        if reader is not None:
            reader.dispose()


class _Checked:
    """Counts what a document unpacks to, and looks at its keys, before anything is made of it."""

    def __init__(self, what: str, path: Path) -> None:
        self.named = f"{what} '{path}'"
        self.sizes: dict[int, int] = {}
        self.open: set[int] = set()

    def count(self, node: yaml.Node) -> int:
        if id(node) in self.sizes:
            return self.sizes[id(node)]
        if id(node) in self.open:
            raise UserError(f"{self.named} holds a value that is part of itself: write it without aliases")
        self.open.add(id(node))
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        size = 1 + sum(self.count(part) for part in parts)
        if size > MOST_NODES:
            raise UserError(f"{self.named} unpacks to more than {MOST_NODES:,} values: write it without aliases")
        self.open.discard(id(node))
        self.sizes[id(node)] = size
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(
                    f"{self.named}: line {key.start_mark.line + 1}: a name is needed, not a list or mapping"
                )
            if key.value in seen:
                raise UserError(f"{self.named}: line {key.start_mark.line + 1}: '{key.value[:60]}' is set twice")
            if key.value != "<<":
                seen.add(key.value)
