"""Both papers' tables and figures, and those of the whole catalogue, from one command: what there is, by name.

An experiment is a list of cells (organisms, removals, analyses) and what is made of their results. Cells are shared:
`sande-table-1` to `sande-table-4` read the same organisms.
"""

from __future__ import annotations

from collections.abc import Sequence

from unbackdoor.errors import UserError
from unbackdoor.reproduce import beear, catalogue, claims, organisms, sande
from unbackdoor.reproduce.experiment import Experiment

_PARTS = (sande, beear, claims, organisms, catalogue)
EXPERIMENTS: dict[str, Experiment] = {name: one for part in _PARTS for name, one in part.EXPERIMENTS.items()}


def chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names, in the papers' order; `all` is every one but the catalogue's.

    Raises:
        UserError: an unknown name.
    """
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise UserError(f"there is no experiment '{name}': choose one of {', '.join(EXPERIMENTS)}, or all")
    in_all = "all" in names
    return [e for name, e in EXPERIMENTS.items() if name in names or (in_all and e.in_all)]
