"""What a finished removal did, for the controls that stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.report_schema import read_report
from unbackdoor.settings import read_yaml


@dataclass(frozen=True)
class Finished:
    """A removal that was run to its end.

    Args:
        method: with the settings that it had.
        rounds: that it took.
        perturbation: the file of the one that it fitted first; None where it fits none.
        path: its run directory.
    """

    method: TrainingMethod
    rounds: int
    perturbation: Path | None
    path: Path

    @classmethod
    def read(cls, run: Path) -> Finished:
        """From a run directory of `remove`. Raises `UserError` where it is none, or not of a finished run."""
        from unbackdoor.methods import METHODS, method_class

        kept = _settings(run)
        name = kept.get("method")
        if name not in METHODS:  # a method of someone's own is in a file, which no run directory may have imported
            raise UserError(f"--like '{run}' is not a run directory of remove")
        chosen = method_class(name)
        had = kept.get("method_settings")
        if not isinstance(had, Mapping):
            raise UserError(f"--like '{run}': its settings.yaml is damaged, and says nothing of its method's settings")
        method = chosen.make({field: had[field] for field in chosen.model_fields if field in had})
        files = sorted((run / "perturbations").glob("*.safetensors"))
        return cls(method.basis, _rounds(run), files[0] if files else None, run)

    @classmethod
    def given(cls, value: Any) -> Any:
        """As a setting is given: one that there is, or a run directory's path."""
        return cls.read(Path(value)) if isinstance(value, str | Path) else value


def _rounds(run: Path) -> int:
    """That the run took, as its report says; 1 of a method without rounds."""
    path = run / "report.json"
    if not path.is_file():
        raise UserError(f"--like '{run}': its run did not finish")
    report = read_report(path, f"--like '{run}': its report.json is damaged: run the removal again")
    return max(1, report.runs[0].rounds)


def _settings(run: Path) -> Mapping[str, Any]:
    path = run / "settings.yaml"
    if not path.is_file():
        raise UserError(f"--like '{run}' is not a run directory of remove")
    return read_yaml(path)
