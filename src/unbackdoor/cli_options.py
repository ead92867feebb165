"""Command-line options made from the settings' fields, and the values that were given put back into settings."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import click

from unbackdoor.cli_help import Option
from unbackdoor.errors import UserError
from unbackdoor.named_classes import check_no_code
from unbackdoor.settings import Heading, Settings, literal_values, option_name, read_yaml

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class GivenPath(click.Path):
    """A path that is given: an empty text, as of a variable that is not set, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an empty one fails."""
        if not str(value):
            self.fail("it is empty: give a path", param, ctx)
        return super().convert(value, param, ctx)


GIVEN_PATH = GivenPath(path_type=Path)


def options_of(*settings: type[Settings]) -> list[click.Option]:
    """One option a field; a value that is not given stays None, so that presets and files can fill it in."""
    seen: dict[str, click.Option] = {}
    for cls in settings:
        for name, field in cls.model_fields.items():
            seen.setdefault(name, _option(name, field, cls.heading_of(name)))
    return list(seen.values())


def _option(name: str, field: FieldInfo, heading: Heading) -> click.Option:
    kind, choices = _bare_type(field.annotation)
    text = field.description or ""
    if not field.is_required() and field.default not in (None, "", ()) and kind is not bool:
        text += f"  [default: {field.default}]"
    if kind is bool:
        flag = option_name(name)  # with its opposite, so that what a file or a recipe switches on can be switched off
        return Option([f"{flag}/--no-{flag[2:]}"], is_flag=True, default=None, help=text, heading=heading)
    if get_origin(kind) is tuple:
        return Option([option_name(name)], multiple=True, callback=_none_if_empty, help=text, heading=heading)
    types_of: dict[Any, Any] = {int: click.INT, float: click.FLOAT, Path: GIVEN_PATH}
    parsed = click.Choice(choices) if choices else types_of.get(kind, click.STRING)
    return Option([option_name(name)], type=parsed, default=None, help=text, required=False, heading=heading)


def _none_if_empty(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """An option that may be given again and was not given at all is None, as the others are."""
    return values or None


def _bare_type(annotation: Any) -> tuple[Any, list[str]]:
    """The type without `| None`, and the values of a Literal."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    choices = literal_values(annotation)
    return (str, [str(value) for value in choices]) if choices else (annotation, [])


def distribute(
    values: dict[str, Any], config: Path | None, *classes: type[Settings], recipe: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The values that were given, one dictionary a class: the command line's before the file's before the recipe's, or
    what is known."""
    known = {name for cls in classes for name in cls.model_fields}
    in_file = read_yaml(config, as_written=True) if config is not None else {}
    for name in in_file:
        if name not in known:
            raise UserError(f"--config '{config}': unknown setting '{name}'; there are: {', '.join(sorted(known))}")
    check_no_code(in_file, f"--config '{config}'")
    given = {**(recipe or {}), **in_file}
    given |= {name: value for name, value in values.items() if value is not None}
    return [{name: given[name] for name in cls.model_fields if name in given} for cls in classes]
