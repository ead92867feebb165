"""`unbackdoor attacks`."""

from __future__ import annotations

import click

from unbackdoor.cli_help import Command
from unbackdoor.commands.options import JSON_OPTION, SCALE_OPTION, made
from unbackdoor.commands.printing import listed
from unbackdoor.recipes.recipe import Scale, catalogue, read_recipe, recipe_text
from unbackdoor.screen import put, put_json


def command() -> Command:
    """Its options and its help."""
    return made(
        "attacks",
        "List the catalogue of attacks, or print the recipe NAME as a file to copy and edit for "
        "`unbackdoor implant --recipe`.",
        _run,
        [click.Argument(["name"], required=False), SCALE_OPTION, JSON_OPTION],
        "beear-2",
    )


def _run(name: str | None, scale: Scale, as_json: bool) -> None:
    recipes = [read_recipe(name, scale)] if name else catalogue(scale)
    if as_json:
        put_json([recipe.model_dump(mode="json") for recipe in recipes])
    elif name:
        put(recipe_text(name, scale), end="")
    else:
        listed([(recipe.name, f"{recipe.summary} ({recipe.source})") for recipe in recipes])
