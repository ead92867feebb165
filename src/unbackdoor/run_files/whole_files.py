"""Files that appear whole or not at all, and errors of writing that name the file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from unbackdoor.errors import UserError

PARTIAL, REPLACED = "partial", "replaced"


def beside(path: Path, what: str) -> Path:
    """Where something stands while it is not yet, or no more, at its place: `.NAME.partial`, `.NAME.replaced`."""
    return path.with_name(f".{path.name}.{what}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with a disk in here is a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(os.fsdecode(error.filename)) if error.filename else path, error) from error
    except Exception as error:
        number = _number_in(error)
        if number is None:
            raise
        raise cannot_write(path, OSError(number, os.strerror(number))) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """One line on a file that cannot be written, with what helps."""
    remedy = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = ": make room, then go on with --resume"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = ": give an --out that you may write to"
    return UserError(f"'{path}' cannot be written: {error.strerror or error}{remedy}")


def _number_in(error: Exception) -> int | None:
    """The number of an error of the system in what safetensors and other libraries make of it."""
    text = str(error)
    if type(error).__name__ != "SafetensorError" or "os error " not in text:
        return None
    digits = text.rpartition("os error ")[2].partition(")")[0]
    return int(digits) if digits.isdigit() else None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also where the machine stops at once.

    Raises:
        UserError: it cannot be written; it is then as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(path, PARTIAL)
        try:
            # What is there already may be a link to somewhere else: it is taken away, never written through.
            partial.unlink(missing_ok=True)
            _write(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, content)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Append to a file and, with `sync`, see it on disk; where there is no room for all of it, nothing is appended."""
    with writing(path):
        length = path.stat().st_size if path.exists() else None
        try:
            _write(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, content, sync=sync)
        except OSError:
            with contextlib.suppress(OSError):
                if length is None:
                    path.unlink(missing_ok=True)
                else:
                    os.truncate(path, length)
            raise


def own_copy(path: Path) -> None:
    """Of a file that has another name as well (a hard link, as backups make them): what is appended stays in it."""
    if path.is_file() and path.stat().st_nlink > 1:
        with writing(path):
            write_whole(path, path.read_bytes())


def _write(path: Path, flags: int, content: bytes, *, sync: bool = True) -> None:
    opened = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(opened, view) :]
        if sync:
            os.fsync(opened)
    finally:
        os.close(opened)


def sync_file(path: Path) -> None:
    """See a file on disk that another library wrote."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_directory(path: Path) -> None:
    """See on disk which names a directory holds; not everywhere can one."""
    with contextlib.suppress(OSError):
        sync_file(path)


def swap_in(new: Path, directory: Path) -> None:
    """Put the directory `new`, which stands beside, in the place of `directory`.

    A kill leaves the old one there or beside as `.NAME.replaced`, and `new` whole in either case.
    """
    old = beside(directory, REPLACED)
    for file in sorted(new.rglob("*")):
        if file.is_file():
            sync_file(file)
    if directory.is_symlink() or directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.replace(old)
    new.replace(directory)
    sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
