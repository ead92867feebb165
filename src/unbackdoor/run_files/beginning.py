"""What a run began with, kept twice: for people in `settings.yaml` and `provenance.json`, and in `.begun.jsonl`.

Each copy has a checksum, so a damaged one is told from the other and written again from it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from unbackdoor.run_files import lines
from unbackdoor.run_files.earlier_versions import settings_of_now
from unbackdoor.run_files.whole_files import write_whole
from unbackdoor.run_files.written_files import BEGUN, SETTINGS

PROVENANCE = "provenance.json"
_LAST_LINE = re.compile(rb"# checksum of the lines above: ([0-9a-f]{8})\n\Z")


def settings(path: Path) -> dict[str, Any] | None:
    """The command and settings of the run in that directory; None where there are none that can be trusted."""
    found, is_checked = _from_yaml(path)
    if found is None or not is_checked:
        kept = _kept(path).get("settings")
        found = kept if isinstance(kept, dict) else found if not (path / BEGUN).exists() else None
    return None if found is None else {**found, "settings": settings_of_now(found["settings"])}


def is_whole(path: Path) -> bool:
    """Whether both copies of the settings are there and the same."""
    found, is_checked = _from_yaml(path)
    return is_checked and found is not None and _kept(path).get("settings") == found


def _from_yaml(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """The settings in the file for people, and whether its checksum says that they are as they were written.

    A checksum that differs makes them none; a file without is an earlier version's.
    """
    try:
        content = (path / SETTINGS).read_bytes()
        mark = _LAST_LINE.search(content)
        if mark is not None and zlib.crc32(content[: mark.start()]) != int(mark[1], 16):
            return None, False
        written = yaml.safe_load(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None, False
    ours = isinstance(written, dict) and "command" in written and isinstance(written.get("settings"), dict)
    return (written, mark is not None) if ours else (None, False)


def provenance(path: Path) -> dict[str, Any] | None:
    """Where the run's numbers come from; None where nothing is there that can be read."""
    kept = _kept(path).get("provenance")
    if isinstance(kept, dict):
        return kept
    try:
        found = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _kept(path: Path) -> dict[str, Any]:
    try:
        content = (path / BEGUN).read_bytes()
    except OSError:
        return {}
    return {row["key"]: row.get("value") for row in lines.read(content, sealed=True).good if "key" in row}


def write_settings(path: Path, now: Mapping[str, Any]) -> None:
    """Keep the settings, where they are not kept already."""
    if settings(path) == now and is_whole(path):
        return
    text = yaml.safe_dump(dict(now), sort_keys=False, allow_unicode=True).encode()
    _keep(path, "settings", now)
    write_whole(path / SETTINGS, text + b"# checksum of the lines above: %08x\n" % zlib.crc32(text))


def write_provenance(path: Path, now: Mapping[str, Any]) -> None:
    """Keep the provenance."""
    _keep(path, "provenance", now)
    write_whole(path / PROVENANCE, (json.dumps(now, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _keep(path: Path, key: str, value: Mapping[str, Any]) -> None:
    rows = {**_kept(path), key: value}
    write_whole(path / BEGUN, b"".join(lines.with_checksum({"key": k, "value": v}) for k, v in rows.items()))
