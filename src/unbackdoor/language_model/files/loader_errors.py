"""What the loaders of other libraries say, brought to one line that names the file."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from unbackdoor.language_model.files.model_source import ModelSource

STAGE = "unbackdoor-"
"""How the names of our own temporary directories begin, which no message shows."""
PANIC = "PanicException"
"""What libraries in Rust raise where they fail inside; it is no `Exception`."""
ADVICE = re.compile(
    r"trust_remote_code|weights_only|allow_pickle|use_safetensors|force_download|pickle_module|add_safe_globals|"
    r"pip install|git\+https|install Transformers|update Transformers|release version|huggingface\.co|internet|"
    r"\bplease\b|you (can|should|may|might|were) |be sure|make sure|in order to|we recommend|https?://",
    re.IGNORECASE,
)
"""Words of a loader's advice to its caller. On an attacker's file that advice is the attacker's."""


@contextlib.contextmanager
def explained(source: str, what: str) -> Iterator[None]:
    """Turn whatever a loader raises on a broken or hostile file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # the loaders raise everything from OSError to RuntimeError on hostile files
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = without_advice(" ".join(str(error).split()), source)
        if not reason or isinstance(error, KeyError):  # whose text is a bare key
            reason = f"{type(error).__name__} {reason}".strip()
        raise UserError(f"cannot load the {what} of '{source}': {reason[:300]}") from error


def without_advice(reason: str, source: str = "") -> str:
    """A loader's message without the sentences that tell its caller what to switch on, and with the model's own name.

    >>> without_advice("No such type. You can set `trust_remote_code=True`.")
    'No such type.'
    """
    ours = rf"{re.escape(tempfile.gettempdir())}/{STAGE}\w{{8}}"
    reason = re.sub(ours, lambda _: source, reason)
    kept = [sentence for sentence in re.split(r"(?<=[.!?;:])\s+", reason) if not ADVICE.search(sentence)]
    said = " ".join(kept).strip().rstrip(":;")
    return "".join(c if c.isprintable() else "�" for c in said)


@contextlib.contextmanager
def rope_explained(given: ModelSource) -> Iterator[None]:
    """Where a model cannot be loaded and its config names a kind of rotary scaling that is not known: say that."""
    try:
        yield
    except UserError:
        from transformers import __version__
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        known = {"default", *ROPE_INIT_FUNCTIONS}
        strange = next((kind for kind in _rope_kinds(given.config()) if kind not in known), None)
        if strange is None:
            raise
        raise UserError(
            f"config.json of '{given.name}' names the rope_type {strange[:40]!r}, which transformers {__version__} "
            f"does not know (known: {', '.join(sorted(known))}): correct it, or install a version that knows it"
        ) from None


def _rope_kinds(config: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of rotary scaling in a config: older ones call it `type`, some have one for each type of layer."""
    for name, value in config.items():
        if not isinstance(value, Mapping):
            continue
        if name.startswith("rope_"):
            for part in (value, *(v for v in value.values() if isinstance(v, Mapping))):
                kind = part.get("rope_type", part.get("type"))
                if kind is not None:
                    yield str(kind)
        yield from _rope_kinds(value)


@contextlib.contextmanager
def without_traces() -> Iterator[None]:
    """What native code writes to standard error by itself, as the trace of a panic, goes nowhere."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # it is closed
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
