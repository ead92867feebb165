"""The list of what a run has written into its directory: only that is ever deleted.

`.written` is a file of lines. A file is listed before it first appears, so a kill leaves nothing that is not listed. A
directory that is written whole (`model/`) is listed by its name alone while it is being written, and by its files when
they are there: what someone puts beside them afterwards is not ours. Without a list, an earlier version wrote what goes
by the names that it gave (`earlier.py`).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import unbackdoor
from unbackdoor.errors import UserError
from unbackdoor.run_files import lines
from unbackdoor.run_files.earlier_versions import is_known
from unbackdoor.run_files.whole_files import PARTIAL, REPLACED, append, beside, write_whole

LIST, LOCK, BEGUN, SETTINGS = ".written", ".lock", ".begun.jsonl", "settings.yaml"
ASIDE, WHOLE = ".replaced", ".whole"

ALWAYS_OURS = {
    *(SETTINGS, "provenance.json", "journal.jsonl", "metrics.jsonl", "generations.jsonl"),
    *("report.json", "report.html", "recipe.yaml", LIST, LOCK, BEGUN, WHOLE),
}
"""In a run directory, whatever its list says: it may be an earlier version's, or damaged."""

HALF_MADE = {LIST, LOCK, BEGUN, *(f".{name}.{PARTIAL}" for name in (LIST, BEGUN, SETTINGS))}
"""What may stand there where a run was killed before it had begun."""


class Written:
    """The list of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / LIST
        content = self.path.read_bytes() if self.path.is_file() else b""
        self._end = lines.end_of_whole_lines(content)
        self._length = len(content)
        self.is_there = False
        self.sealed = False
        """Whether every line of the run's files has had a checksum since they began."""
        self.files: set[str] = set()
        self.trees: dict[str, bool] = {}
        """Directories that are written whole, and whether their files are listed."""
        self.sheets: dict[str, set[int]] = {}
        """Files that a person is asked to fill in: the checksums that we wrote them with."""
        for row in lines.read(content, sealed=True).good:
            self._take(row)

    def _take(self, row: dict[str, object]) -> None:
        if "began" in row:
            self.is_there, self.sealed = True, row.get("sealed") is True
            earlier = row.get("earlier")
            self.files |= set(map(str, earlier)) if isinstance(earlier, list) else set()
        if isinstance(row.get("tree"), str):
            tree, listed = str(row["tree"]), row.get("files")
            self.files = {name for name in self.files if not name.startswith(f"{tree}/")}
            self.trees[tree] = isinstance(listed, list)
            self.files |= {f"{tree}/{name}" for name in listed} if isinstance(listed, list) else set()
        if isinstance(row.get("file"), str):
            self.files.add(str(row["file"]))
            if isinstance(row.get("sheet"), int):
                self.sheets.setdefault(str(row["file"]), set()).add(int(str(row["sheet"])))

    def begin(self) -> None:
        """Start the list, where there is none."""
        if not self.is_there:
            fresh = not any(self.directory.glob("[!.]*.jsonl"))
            earlier = [] if fresh or not (self.directory / SETTINGS).is_file() else self._of_earlier_versions()
            row: dict[str, object] = {"began": unbackdoor.__version__, "sealed": fresh}
            row |= {"earlier": earlier} if earlier else {}
            if self.path.exists():
                self._append(row)
            else:
                write_whole(self.path, lines.with_checksum(row))
                self._end = self._length = self.path.stat().st_size
            self._take(row)

    def _of_earlier_versions(self) -> list[str]:
        """What is there of a run that was begun by a version which kept no list."""
        names = (file.relative_to(self.directory).as_posix() for file in files_in(self.directory))
        return sorted(name for name in names if is_known(name))

    def _add(self, row: dict[str, object]) -> None:
        self.begin()
        self._append(row)
        self._take(row)

    def _append(self, row: dict[str, object]) -> None:
        if self._end < self._length:  # a kill cut the last line short
            os.truncate(self.path, self._end)
            self._length = self._end
        append(self.path, lines.with_checksum(row))

    def add(self, name: str) -> None:
        """List a file before it is written."""
        if name not in self.files:
            self._add({"file": name})

    def add_sheet(self, name: str, content: bytes) -> None:
        """List a file that a person is asked to fill in: what they filled in is theirs."""
        if zlib.crc32(content) not in self.sheets.get(name, set()):
            self._add({"file": name, "sheet": zlib.crc32(content)})

    def begin_tree(self, name: str) -> None:
        """List a directory that is about to be written whole. Raises `UserError` where it holds what is not ours."""
        target = self.directory / name
        if self.trees.get(name) is False:  # a kill: it is being written
            return
        if target.is_symlink() or target.is_file():
            raise UserError(f"'{target}' was not written by this run and would be replaced: move it away")
        if target.is_dir() and (found := next(self._foreign(target), None)) is not None:
            raise UserError(f"'{found}' was not written by this run and would be deleted: move it away")
        self._add({"tree": name})

    def end_tree(self, name: str) -> None:
        """List the files that are in a directory now."""
        tree = self.directory / name
        found = sorted(file.relative_to(tree).as_posix() for file in (files_in(tree) if tree.is_dir() else ()))
        self._add({"tree": name, "files": found})

    def delete_tree(self, name: str) -> None:
        """Delete what was written into a directory, and what stands beside it for the moment."""
        target = self.directory / name
        for place in (target, beside(target, PARTIAL), beside(target, REPLACED)):
            if place.is_dir() and not place.is_symlink():
                foreign = set(self._foreign(place)) if place == target and self.trees.get(name) is not False else set()
                for file in [file for file in files_in(place) if file not in foreign]:
                    file.unlink()
                remove_empty(place)

    def foreign(self) -> Iterator[Path]:
        """What is in the directory, at any depth, and was not written by a run."""
        yield from self._foreign(self.directory)

    def _foreign(self, place: Path) -> Iterator[Path]:
        for entry in sorted(os.scandir(place), key=lambda e: e.name):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                name = path.relative_to(self.directory).as_posix()
                if self.trees.get(self._unbeside(name)) is False or (
                    entry.name.startswith(".") and self._unbeside(name) in self.trees.keys() | self.files
                ):
                    continue
                if name == ASIDE or is_run(path) or (not self.is_there and (path / SETTINGS).is_file()):
                    yield from Written(path).foreign()
                else:
                    yield from self._foreign(path)
            elif not self._is_ours(path):
                yield path

    def _is_ours(self, path: Path) -> bool:
        name = path.relative_to(self.directory).as_posix()
        if path.is_symlink():
            return False
        if name in self.sheets:
            return zlib.crc32(path.read_bytes()) in self.sheets[name]
        if not self.is_there and is_known(name):
            return True
        return name in self.files or name in ALWAYS_OURS | HALF_MADE or self._unbeside(name) in self.files | ALWAYS_OURS

    @staticmethod
    def _unbeside(name: str) -> str:
        """The name of what stands, or stood, at its place, of `.NAME.partial` or `.NAME.replaced`."""
        place, _, last = name.rpartition("/")
        for what in (PARTIAL, REPLACED):
            if last.startswith(".") and last.endswith(f".{what}"):
                return f"{place}/{last[1 : -len(what) - 1]}".removeprefix("/")
        return name


def is_run(directory: Path) -> bool:
    """Whether a directory keeps a list of its own, or is about to: a run within a run."""
    return (directory / LIST).is_file() or ((directory / LOCK).is_file() and is_half_made(directory))


def is_half_made(directory: Path) -> bool:
    """Whether nothing is there but what a run leaves that is killed before it has begun."""
    entries = list(os.scandir(directory))
    return all(e.name in HALF_MADE and e.is_file(follow_symlinks=False) for e in entries)


def check_no_links(directory: Path) -> None:
    """Raise a `UserError` where a symbolic link lies in a directory that will be written to, or deleted from."""
    found = next((file for file in files_in(directory) if file.is_symlink()), None)
    if found is not None:
        raise UserError(
            f"'{found}' is a link, and what is written or deleted there would be where it leads: put the files "
            "themselves there, or give another --out"
        )


def files_in(directory: Path) -> Iterator[Path]:
    """Every file and link below, without following links to directories."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from files_in(Path(entry.path))
        else:
            yield Path(entry.path)


def delete_ours(directory: Path) -> None:
    """Delete what runs wrote into a directory, its list last, and the directory itself where nothing is left in it."""
    foreign = set(Written(directory).foreign())
    last = [directory / name for name in (SETTINGS, BEGUN, LIST)]
    whole = directory / WHOLE  # as long as anything is left, it says that this is not the run that counts
    for file in [*(f for f in files_in(directory) if f not in (*last, whole)), *last]:
        if file not in foreign and (file.is_symlink() or file.exists()):
            file.unlink()
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            remove_empty(Path(entry.path))
    if {entry.name for entry in os.scandir(directory)} <= {WHOLE}:
        whole.unlink(missing_ok=True)
        directory.rmdir()


def remove_empty(directory: Path) -> None:
    """Remove the empty directories below, and this one where nothing is left in it."""
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            remove_empty(Path(entry.path))
    if not any(os.scandir(directory)):
        directory.rmdir()
