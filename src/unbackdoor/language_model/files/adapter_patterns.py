"""The patterns by which an adapter's settings name modules, tried on the base's names before peft does so.

They are an attacker's regular expressions. One that tries every way to part a name never ends, and Python's engine has
no limit of its own: so they are matched in a process that can be ended first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unbackdoor.errors import UserError

SECONDS, PLAIN = 10, re.compile(r"[\w.-]*")
_TRY = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in ("(?:%s)", r"(?:.*\.)?(?:%s)$", r"(?:^|.*\.)%s(?:$|\..*)", r"(?:^|.*?\.)%s\.(?P<idx_>\d+)\."):
        for name in names:
            re.match(form % pattern, name)
            re.fullmatch(form % pattern, name)
"""
"""In the forms in which peft (0.21) matches them."""


def check_patterns(settings: Mapping[str, Any], names: Iterable[str], source: str) -> None:
    """Raise a `UserError` where the patterns are none, or are not matched against all names in some seconds.

    Args:
        settings: the adapter's.
        names: of the base's modules.
        source: the adapter, for the message.
    """
    patterns = sorted({pattern for pattern in _patterns(settings) if not PLAIN.fullmatch(pattern)})
    if not patterns:
        return
    shown = patterns[0][:60]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([patterns, sorted(set(names))]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the adapter '{source}' names its modules by patterns, such as {shown!r}, that take longer than {SECONDS} "
            "seconds on the names of its base: give its target_modules as a list of names"
        ) from None
    if done.returncode:
        raise UserError(
            f"the adapter '{source}' names its modules by patterns, such as {shown!r}, that are none: give its "
            "target_modules as a list of names"
        )


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the settings that peft matches against names."""
    for name, value in settings.items():
        if name.endswith(("_pattern", "_modules", "modules_to_save", "_parameters")):
            yield from (text for text in ([value] if isinstance(value, str) else _all(value)) if isinstance(text, str))


def _all(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | Mapping) else ()
