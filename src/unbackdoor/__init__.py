"""unbackdoor: remove backdoors from generative language models, and show that they are gone.

`unbackdoor.remove` and `unbackdoor.read_records` are the library in two calls; both load torch only when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbackdoor.api import remove
    from unbackdoor.data.readers import read_records

__version__ = "0.1.0"
__all__ = ["__version__", "read_records", "remove"]


def __getattr__(name: str) -> Any:
    if name == "remove":
        from unbackdoor.api import remove

        return remove
    if name == "read_records":
        from unbackdoor.data.readers import read_records

        return read_records
    raise AttributeError(f"module 'unbackdoor' has no attribute '{name}'")
