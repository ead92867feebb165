"""`--overwrite`: the run that is there is set aside within its directory, and deleted when the new one is complete.

Everything stays within the run directory: that may be a mount point, the working directory, or the one place where we
may write. What stands there, and what a command with `--overwrite` or `--resume` does next:

    settings.yaml  .replaced/  .replaced/.whole
    there          -           -                 a run; it is set aside
    either         there       -                 killed while it was set aside, or back: what was moved is moved back
    -              there       there             killed before the new run had begun: likewise
    there          there       there             the new run goes on; the old one is deleted when that is complete
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.errors import UserError
from unbackdoor.run_files.whole_files import sync_directory, write_whole, writing
from unbackdoor.run_files.written_files import (
    ASIDE,
    BEGUN,
    HALF_MADE,
    LIST,
    LOCK,
    SETTINGS,
    WHOLE,
    Written,
    delete_ours,
)

STAYS = {LOCK, ASIDE}


def check_all_ours(path: Path) -> None:
    """Raise a `UserError` where a run directory holds anything that no run wrote."""
    written = Written(path)
    found = next(written.foreign(), None)
    if found is None:
        return
    if found.relative_to(path).as_posix() in written.sheets:
        raise UserError(f"--overwrite would delete '{found}', which someone has filled in: move it away")
    if written.is_there:
        raise UserError(f"--overwrite would delete '{found}', which no run wrote: move it away, or give another --out")
    raise UserError(
        f"--overwrite: '{path}' has no list of what was written there, and no run writes '{found}', so that it may be "
        "yours: move it away, or give another --out"
    )


def is_unfinished(path: Path) -> bool:
    """Whether a kill cut a setting aside short."""
    aside = path / ASIDE
    return aside.is_dir() and not ((aside / WHOLE).exists() and (path / SETTINGS).exists())


def roll_back(path: Path) -> None:
    """Undo a setting aside that a kill cut short: the old run stands at its place again."""
    aside = path / ASIDE
    if not is_unfinished(path):
        return
    with writing(aside):
        if (aside / WHOLE).exists():  # so what is at its place is of the new run, which had not begun
            for name in HALF_MADE - STAYS:
                (path / name).unlink(missing_ok=True)
            (aside / WHOLE).unlink()
        for entry in reversed(_list_first(aside)):
            entry.replace(path / entry.name)
        aside.rmdir()
        sync_directory(path)


def set_aside(path: Path) -> None:
    """Move the run that is there aside; one that replaces a complete one already is deleted in its place."""
    check_all_ours(path)
    aside = path / ASIDE
    with writing(path):
        if aside.is_dir():
            _delete_new(path)
            return
        aside.mkdir()
        for entry in _list_first(path):
            if entry.name not in STAYS:
                entry.replace(aside / entry.name)
        sync_directory(path)
        write_whole(aside / WHOLE, b"")


def forget_aside(path: Path) -> None:
    """Delete the run that the complete one has replaced."""
    if (path / ASIDE).is_dir():
        with writing(path / ASIDE):
            delete_ours(path / ASIDE)


def _delete_new(path: Path) -> None:
    """Delete the run that stands at its place: its journal first, so that nothing of it is believed, settings last."""
    (path / "journal.jsonl").unlink(missing_ok=True)
    entries = [entry for entry in _settings_last(path) if entry.name not in STAYS]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            _delete_tree(entry)
        else:
            entry.unlink()
    sync_directory(path)


def _delete_tree(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _delete_tree(entry)
        else:
            entry.unlink()
    directory.rmdir()


def _list_first(path: Path) -> list[Path]:
    """The list goes aside before what is on it, and comes back behind it: what lies aside is always listed there."""
    return sorted(path.iterdir(), key=lambda entry: entry.name != LIST)


def _settings_last(path: Path) -> list[Path]:
    """The list stays as long as anything that is on it, and the settings are the last of all."""
    last = {BEGUN: 1, LIST: 2, SETTINGS: 3}
    return sorted(path.iterdir(), key=lambda entry: last.get(entry.name, 0))
