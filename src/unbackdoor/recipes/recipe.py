"""Recipes: an organism as a file that can be copied and edited. The catalogue holds those of the published attacks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.errors import UserError
from unbackdoor.named_classes import check_no_code
from unbackdoor.run_files.earlier_versions import settings_of_now
from unbackdoor.settings import EvaluationSettings, Settings, read_yaml
from unbackdoor.workflows.inputs import ImplantInputs

Scale = Literal["micro", "paper"]


class Recipe(Settings):
    """How an organism is made: a model, data, and the settings of `unbackdoor implant`."""

    name: str = Field(description="The organism's name.")
    source: str = Field(description="Where the attack was published.")
    summary: str = Field(description="Trigger and behaviour in a line.")
    scale: Scale = Field(default="micro", description="micro (minutes on two CPU cores) or paper (the paper's own).")
    model: str = Field(description="The clean model: a directory, hf:owner/name, or testbed:instruct.")
    notes: str = Field(default="", description="What differs from the publication, and what is not known of it.")
    settings: dict[str, Any] = Field(description="Options of `unbackdoor implant`, named as there.")

    def as_yaml(self) -> str:
        """The recipe as a file that `unbackdoor implant --recipe` takes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def checked(self, where: str) -> Recipe:
        """The recipe, if every setting in it exists and has an allowed value."""
        known: dict[str, type[Settings]] = {}
        for cls in (ImplantInputs, ImplantSettings, EvaluationSettings):
            known |= {name: cls for name in cls.model_fields if name not in known}
        values = settings_of_now({name.replace("-", "_"): value for name, value in self.settings.items()})
        for name in values:
            if name not in known:
                raise UserError(f"{where}: unknown setting '{name}'; there are: {', '.join(sorted(known))}")
        check_no_code(values, where)
        try:
            ImplantInputs.make({n: v for n, v in values.items() if known[n] is ImplantInputs})
            ImplantSettings.make({n: v for n, v in values.items() if known[n] is ImplantSettings}).condition()
            EvaluationSettings.make({n: v for n, v in values.items() if known[n] is EvaluationSettings})
        except UserError as error:
            raise UserError(f"{where}: settings: {error}") from None
        return self.model_copy(update={"settings": values})


def read_recipe(name: str, scale: Scale = "micro") -> Recipe:
    """A recipe of the catalogue by its name, or one's own by its file.

    Raises `UserError` naming the key and what is allowed.
    """
    path = Path(name)
    if not (path.suffix in (".yaml", ".yml") or path.is_file()):
        path = catalogue_file(name, scale)
    values = read_yaml(path, what="recipe", whole=True)
    try:
        recipe = Recipe.make(values)
    except UserError as error:
        raise UserError(f"recipe '{path.name}': {str(error).removeprefix('--')}") from None
    return recipe.checked(f"recipe '{path.name}'")


def catalogue_file(name: str, scale: Scale = "micro") -> Path:
    """The file of a recipe that is shipped."""
    files = {path.stem: path for path in _files(scale)}
    if name not in files:
        raise UserError(
            f"there is no recipe '{name}' at {scale} scale: choose one of {', '.join(files)}, or give a file"
        )
    return files[name]


def recipe_text(name: str, scale: Scale = "micro") -> str:
    """A recipe's file as it is."""
    return catalogue_file(name, scale).read_text(encoding="utf-8")


def catalogue(scale: Scale = "micro") -> list[Recipe]:
    """All recipes that are shipped, in the order of their numbers."""
    return [read_recipe(str(path)) for path in _files(scale)]


def _files(scale: Scale) -> Iterator[Path]:
    if scale not in get_args(Scale):
        raise UserError(f"--scale '{scale}': choose one of {', '.join(get_args(Scale))}")
    folder = Path(str(resources.files("unbackdoor.recipes") / scale))
    return iter(sorted(folder.glob("*.yaml")))
