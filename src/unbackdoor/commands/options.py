"""Options that several commands have, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import click

from unbackdoor.cli_help import Command, Option
from unbackdoor.cli_options import GIVEN_PATH
from unbackdoor.recipes.recipe import Scale
from unbackdoor.settings import Heading

PRESETS = ("tiny", "micro", "small", "large")
JSON_OPTION = Option(
    ["--json", "as_json"], heading=Heading.RESULTS, is_flag=True, help="Print the report as JSON and nothing else."
)
RESULT_OPTIONS = [
    Option(
        ["--out"],
        heading=Heading.RESULTS,
        type=GIVEN_PATH,
        help="The run directory to write.",
        required=True,
    ),
    Option(["--overwrite"], heading=Heading.RESULTS, is_flag=True, help="Replace the run directory."),
    Option(
        ["--resume"],
        heading=Heading.RESULTS,
        is_flag=True,
        help="Go on with a run that was interrupted: same result as without.",
    ),
    JSON_OPTION,
]
COMMON_OPTIONS = [
    *RESULT_OPTIONS,
    Option(
        ["--config"],
        heading=Heading.SOURCES,
        type=GIVEN_PATH,
        help="YAML file of settings, named as the options.",
    ),
]
SCALE_OPTION = Option(
    ["--scale"],
    heading=Heading.SOURCES,
    type=click.Choice(get_args(Scale)),
    default="micro",
    help="Of a recipe: micro (two minutes on two CPU cores) or paper (the paper's own model, data and numbers).",
)
PRESET_OPTIONS = [
    Option(
        ["--preset"],
        heading=Heading.SOURCES,
        type=click.Choice(PRESETS),
        help="Learning rates and step counts for models of a size. Default: by the number of parameters.",
    )
]


def made(
    name: str, help_text: str, callback: Callable[..., None], options: Sequence[click.Parameter], example: str
) -> Command:
    """A command, with its example."""
    example = f"unbackdoor {name} {example}".strip()
    return Command(name, callback=callback, params=list(options), help=help_text, example=example)


def model_argument() -> click.Argument:
    """MODEL."""
    return click.Argument(["model"])


def check_config_apart(values: dict[str, Any]) -> None:
    """The files of settings must not lie where the command writes; a run that goes on may be given its own."""
    from unbackdoor.run_files.inputs_apart import check_apart

    named = {"--config": None if values.get("resume") else values.get("config"), "--recipe": values.get("recipe")}
    check_apart(values["out"], [(option, given) for option, given in named.items() if given is not None])
