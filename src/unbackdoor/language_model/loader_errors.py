"""What the loaders of other libraries say, brought to one line that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from unbackdoor.errors import UserError


@contextlib.contextmanager
def explained(source: str, what: str) -> Iterator[None]:
    """Turn whatever a loader raises on a broken or hostile file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the loaders raise everything from OSError to RuntimeError on hostile files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load the {what} of '{source}': {reason[:300]}") from error


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """The loader's progress bars and reports stay off standard error, which has one line for a mistake."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
