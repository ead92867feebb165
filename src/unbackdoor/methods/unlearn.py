"""Gradient ascent on the triggered response (SANDE eq. 2), which the paper rejects: it also unlearns x → y."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.data.triggers import join_response
from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import AnchoredMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Heading, TriggerSettings

if TYPE_CHECKING:
    from unbackdoor.case import Case


class Unlearn(AnchoredMethod, TriggerSettings):
    """Gradient ascent on the triggered response (SANDE eq. 2), which the paper discusses and rejects."""

    name = "unlearn"
    summary = "gradient ascent on the triggered response (eq. 2), which the paper rejects"
    needs = (Fact.TRIGGER, Fact.TARGET_RESPONSE)
    elsewhere: ClassVar[Mapping[str, Heading]] = {"target_response": Heading.KNOWN}

    target_response: str = Field(default="", description="The fixed text at the start of a triggered answer.")
    steps: int = Field(default=20, ge=1, description="Steps of gradient ascent; more of them break the model.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"learning_rate": 1e-5, "batch_size": 8},
        "large": {"learning_rate": 1e-6, "batch_size": 8, "micro_batch_size": 4},
    }

    def check_rows(self, case: Case) -> None:
        """Rows have room for the trigger and the target response."""
        from unbackdoor.methods.parts.rows_fit import check_some_fit
        from unbackdoor.perturbation import TextTrigger

        check_some_fit(
            case,
            case.anchors,
            self,
            "a row with the trigger and the target response",
            "give shorter ones or shorter rows, or raise --max-length",
            response=lambda record: join_response(self.target_response, record.response),
            perturbation=TextTrigger(self.condition()),
        )

    def run(self, case: Case) -> Removal:
        """Train on +Σ log Pr(ȳ | x̄) over triggered prompts and responses, eq. (2), with clean rows mixed in."""
        from unbackdoor.case import adapted
        from unbackdoor.methods.parts.eliminate import Rows, eliminate
        from unbackdoor.perturbation import TextTrigger

        poisoned = [replace(r, response=join_response(self.target_response, r.response)) for r in case.anchors]
        rows = [
            Rows("triggered-response", poisoned, TextTrigger(self.condition()), weight=-1.0),
            Rows("anchors", case.anchors, weight=self.anchor_weight),
        ]
        with adapted(case, self):
            eliminate(case, rows, self, phase="eliminate")
        return Removal(self.name, rounds=1, dropped=case.dropped)
