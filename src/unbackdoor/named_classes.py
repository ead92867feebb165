"""What goes by name: ours, imported when it is asked for, and a user's own in a file, as `FILE.py:NAME`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unbackdoor import bounded_files
from unbackdoor.errors import UserError


def is_own(given: str) -> bool:
    """Whether it is `FILE.py:NAME`."""
    file, colon, _ = given.rpartition(":")
    return bool(colon) and file.endswith(".py")


def check_no_code(values: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` where settings of a file, which may come from others, name code to import, or where answers
    and a key are to be sent."""
    for name, value in values.items():
        if name in ("injection", "scorer") and is_own(str(value)):
            raise UserError(f"{where}: --{name} FILE.py:NAME is taken from the command line alone")
        if name == "option" and ".judge_" in str(value).replace("-", "_"):
            raise UserError(f"{where}: --option SCORER.judge_…=… is taken from the command line alone")


def named(
    given: str,
    what: str,
    ours: Mapping[str, str],
    package: str | None,
    base: type | tuple[type, ...] = (),
    *,
    functions: bool = False,
) -> Any:
    """What is called so: one of ours, or a class (or a function, with `functions`) of a file of the user's.

    A file is imported, and so runs as the user does. A class of the user's without a name gets its own.

    Args:
        given: a name among `ours`, or `FILE.py:NAME`.
        what: what it is, for errors.
        ours: name → module and class, or function.
        package: where these modules are.
        base: the class that it is a kind of, where a class will do.
        functions: whether a function will do.

    Raises:
        UserError: there is no such name, file or name in it, or the file cannot be imported.
    """
    if given in ours:
        module, name = ours[given].split(":")
        return getattr(importlib.import_module(f"{package}.{module}"), name)
    if not is_own(given):
        raise UserError(f"unknown {what} '{given}': choose one of {', '.join(ours)}, or FILE.py:NAME")
    file, _, name = given.rpartition(":")
    own: dict[str, Any] = {
        key: value
        for key, value in _names_of(Path(file), what).items()
        if (functions and inspect.isfunction(value)) or (isinstance(value, type) and issubclass(value, base))
    }
    if name not in own:
        raise UserError(f"{what} file '{file}' has no {what} '{name}'; there are: {', '.join(own) or 'none'}")
    if isinstance(own[name], type) and not own[name].name:
        own[name].name = name
    return own[name]


def _names_of(path: Path, what: str) -> dict[str, Any]:
    """What a file defines, and not what it imports."""
    bounded_files.regular(path, f"{what} file")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"unbackdoor_{what}_{path.stem}_{place}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations of the fields are looked up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"{what} file '{path}' cannot be imported: {type(error).__name__}: {error}") from error
    return {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == spec.name}
