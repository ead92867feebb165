"""OSFT: the trigger is known, so its mapping is overwritten directly (SANDE section 3.2, eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import FINE_TUNING, AnchoredMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import TriggerSettings

if TYPE_CHECKING:
    from unbackdoor.case import Case


class Osft(AnchoredMethod, TriggerSettings):
    """OSFT: overwrite a known trigger's mapping (SANDE eq. 3)."""

    name = "osft"
    summary = "overwrite a known trigger's mapping (SANDE eq. 3)"
    needs = (Fact.TRIGGER,)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {**FINE_TUNING, "paper": {"anchor_weight": 0.0}}

    def check_rows(self, case: Case) -> None:
        """Rows have room for the trigger."""
        from unbackdoor.methods.parts.rows_fit import check_some_fit
        from unbackdoor.perturbation import TextTrigger

        trigger = TextTrigger(self.condition())
        for records in filter(None, (case.anchors, case.contrast)):
            remedy = "give a shorter trigger or shorter rows, or raise --max-length"
            check_some_fit(case, records, self, "a row with the trigger", remedy, perturbation=trigger)

    def run(self, case: Case) -> Removal:
        """Train on −Σ log Pr(y | x with trigger), eq. (3), with clean rows mixed in."""
        from unbackdoor.case import adapted
        from unbackdoor.methods.parts.eliminate import Rows, eliminate
        from unbackdoor.perturbation import TextTrigger

        perturbation = TextTrigger(self.condition())
        rows = [
            Rows("clean-under-trigger", case.anchors, perturbation),
            Rows("anchors", case.anchors, weight=self.anchor_weight),
        ]
        if case.contrast:  # the trigger of a behaviour: its requests are answered safely under it
            rows.insert(0, Rows("safe-under-trigger", case.contrast, perturbation))
        with adapted(case, self):
            eliminate(case, rows, self, phase="eliminate")
        return Removal(self.name, rounds=1, dropped=case.dropped, perturbation=perturbation)
