"""The program that renders chat templates, started by `template_process` and fed over pipes.

A template is a stranger's program. It may loop for ever, or compute a number with a billion digits, while it is
compiled as well as while it runs; so both happen here, where the process can be killed, and never where the model is.
It runs in transformers' own sandbox. This file imports nothing of the package: it is started by its path.

A request and its reply are a line of JSON each. A request: `templates` (key → source, new ones only), `key`,
`dialogues` (pairs of a list of messages, and whether it is answered), `more` (special tokens, a date), `seconds` (of
processor time for all of them), `most` (characters that a rendering may have). The reply: `results`, each a text or an
object whose `error` is the template's own reason, fewer where they are long; the `seconds` that were used; and
`broken`, that the process should not be used again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
import time
import types
from typing import Any

MEMORY = 512 * 2**20
"""Bytes that a template may take beside what Python and transformers have."""

CHARACTERS = 32 * 2**20
"""A reply ends after so many."""


def main() -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    render = _transformers()
    _limit_memory()
    sources: dict[str, str] = {}
    for line in sys.stdin.buffer:
        reply = _answered(json.loads(line), sources, render)
        replies.write(json.dumps(reply).encode("ascii") + b"\n")
        replies.flush()


def _answered(request: dict[str, Any], sources: dict[str, str], render: Any) -> dict[str, Any]:
    begun = time.process_time()
    sources |= request["templates"]
    _limit_time(request["seconds"])
    results: list[str | dict[str, str]] = []
    room, broken = CHARACTERS, False
    for dialogue, answered in request["dialogues"]:
        try:
            (text,) = render(
                [dialogue],
                chat_template=sources[request["key"]],
                add_generation_prompt=not answered,
                **request["more"],
            )[0]
            if len(text) > request["most"]:
                raise ValueError(f"it writes {len(text):,} characters where {request['most']:,} are allowed")
            results.append(text)
            room -= len(text)
        except MemoryError:
            results.append({"error": f"it takes more than {MEMORY // 2**20} MB of memory"})
            broken = True
        except Exception as error:  # anything can come out of a stranger's program
            results.append({"error": _said(error)})
        if broken or room < 0:
            break
    return {"results": results, "broken": broken, "seconds": time.process_time() - begun}


def _transformers() -> Any:
    """The function of transformers that renders, without what it is not needed for."""
    for name in ("torch", "PIL"):
        sys.modules[name] = None  # type: ignore[assignment]
    try:  # its module alone: the package's own beginning reads every model's
        (place,) = importlib.util.find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
        for name, path in (("transformers", place), ("transformers.utils", os.path.join(place, "utils"))):  # noqa: PTH118
            package = types.ModuleType(name)
            package.__path__ = [path]
            sys.modules[name] = package
        module = importlib.import_module("transformers.utils.chat_template_utils")
    except Exception:  # of another version, whose module needs more
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        module = importlib.import_module("transformers.utils.chat_template_utils")
    return module.render_jinja_template


def _said(error: Exception) -> str:
    try:
        return str(error)[:1000] or type(error).__name__
    except Exception:  # a message that cannot be written is the template's, too
        return type(error).__name__


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - nothing but this is needed of pathlib
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, taken + MEMORY)
        _lower(resource.RLIMIT_CORE, 0)
    except (ImportError, OSError, ValueError):  # no such limit on this system: time is limited all the same
        pass


def _limit_time(seconds: float) -> None:
    """The system ends this process after so much processor time, also where the one that asked is gone."""
    try:
        import resource

        _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
    except (ImportError, OSError, ValueError):
        pass


def _lower(what: int, limit: int) -> None:
    import resource

    highest = resource.getrlimit(what)[1]
    soft = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
    resource.setrlimit(what, (soft, highest))


if __name__ == "__main__":
    main()
