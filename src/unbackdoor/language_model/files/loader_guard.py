"""While a model's files are read nothing is unpickled and no other machine is asked, whatever a loader tries.

The loaders of other libraries have many ways to both, and new versions bring new ones. This is the second wall behind
the first one, which is that they are given nothing but data.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.Lock()
_open = 0
"""How many models are being read. Loaders read in threads of their own, so it holds for the whole process."""
_installed = False


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Inside, unpickling a class and connecting to another machine raise `OSError`."""
    global _open, _installed
    with _LOCK:
        if not _installed:  # a hook cannot be taken away again
            sys.addaudithook(_forbid)
            _installed = True
        _open += 1
    try:
        yield
    finally:
        with _LOCK:
            _open -= 1


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if not _open:
        return
    if event == "pickle.find_class":
        raise OSError("a file of the model would be unpickled, which can run code: only safetensors and GGUF are read")
    if event == "socket.getaddrinfo" or (event == "socket.connect" and not isinstance(arguments[1], str | bytes)):
        raise OSError("the model's files ask for another machine, and no network is used while a model is read")
