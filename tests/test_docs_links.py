"""What README.md and docs/ point at is there: files, anchors, and the rows of tables that a command wrote."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "docs" / "results"
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)>\s]+)>?[^)]*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without code, in which brackets are no links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`+[^`\n]*`+", "code", text)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces, numbered."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


def broken_links(page: Path, text: str | None = None) -> list[str]:
    broken = []
    for target in LINK.findall(prose(page) if text is None else text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site, which no test asks
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / unquote(path)
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nothing_is_found() -> None:
    page = ROOT / "README.md"
    text = "[a](docs/nowhere.md) [b](#no-such-heading) [c](docs/results/README.md#on-a-gpu) [d](https://example.org)"
    assert broken_links(page, text) == ["docs/nowhere.md", "#no-such-heading"]


def tables(page: Path) -> list[tuple[str, list[list[str]]]]:
    """The tables of a results page that say which written table their columns are of."""
    text = page.read_text(encoding="utf-8")
    return [
        (name, cells_of(block))
        for name, block in re.findall(r"^<!-- columns of (\S+) -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    ]


def cells_of(block: str) -> list[list[str]]:
    rows = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in (rows[0], *rows[2:])]


TABLES = [(page.name, name, rows) for page in sorted(RESULTS.glob("*.md")) for name, rows in tables(page)]


@pytest.mark.parametrize(
    ("name", "rows"), [t[1:] for t in TABLES], ids=[f"{page}-{Path(name).stem}" for page, name, _ in TABLES]
)
def test_a_pages_columns_are_those_of_the_written_table(name: str, rows: list[list[str]]) -> None:
    head, *written = cells_of((RESULTS / name).read_text(encoding="utf-8"))
    assert head  # a table that the command wrote, not one that a person changed
    places = [head.index(column) for column in rows[0]]
    assert rows[1:] == [[row[place] for place in places] for row in written]


def test_some_pages_have_such_tables() -> None:
    assert {page for page, _, _ in TABLES} >= {"catalogue.md", "organisms.md", "papers-beear.md", "papers-sande.md"}


def test_the_index_of_results_has_every_page() -> None:
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in RESULTS.glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
    assert len(index.splitlines()) <= 50  # one screen
