"""Cells of a CSV file that no spreadsheet runs as a formula, whatever a stranger wrote into them."""

from __future__ import annotations

import unicodedata

from unbackdoor.visible_text import BLANK_LETTERS, UNSEEN_CATEGORIES

FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""What makes spreadsheets take a cell for a formula, or for the beginning of one (OWASP, "CSV Injection")."""


def guarded(cell: str) -> str:
    """The cell behind an apostrophe, where it could be run; `restored` takes that away again.

    Blanks and characters that are not seen do not count: some programs pass over them before they look.
    """
    return f"'{cell}" if cell.startswith((*FORMULA, "'")) or _bare(cell).startswith(FORMULA) else cell


def restored(cell: str) -> str:
    """The cell as it was before `guarded`."""
    return cell.removeprefix("'")


def _bare(cell: str) -> str:
    """The cell from its first character that is seen."""
    for place, character in enumerate(cell):
        unseen = unicodedata.category(character) in UNSEEN_CATEGORIES | {"Mn"} or character in BLANK_LETTERS
        if not (unseen or character.isspace()):
            return cell[place:]
    return ""
