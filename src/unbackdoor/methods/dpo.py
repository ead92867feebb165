"""Direct Preference Optimization (Rafailov et al. 2023), SANDE's second baseline: common safety training, and no more.

It is given no trigger and no target response: pairs of a preferred and another answer to ordinary prompts. The training
is TRL's, in one phase without checkpoints, so a resumed run begins that phase again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.workload import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.case import Case


class Dpo(TrainingMethod):
    """DPO: train on preference pairs (Rafailov et al. 2023; SANDE's baseline)."""

    name = "dpo"
    summary = "train on preference pairs (DPO), as safety training does"
    needs = (Fact.PREFERENCES,)

    beta: float = Field(
        default=0.1, gt=0, description="How dearly the distance from the model as it came is paid for (β)."
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"learning_rate": 5e-4, "batch_size": 16},
        "micro": {"batch_size": 16},
        "small": {"steps": 100, "learning_rate": 1e-5, "batch_size": 8},
        # SANDE names the data (HH-RLHF) and no numbers: these are DPO's own (Rafailov et al. 2023, appendix B), for as
        # many pairs as the other methods get rows (10,000).
        "large": {"steps": 157, "learning_rate": 1e-6, "batch_size": 64, "micro_batch_size": 4},
    }

    def check_model(self, model: PreTrainedModel) -> None:
        """What trains is installed."""
        from unbackdoor.preference_training import import_trl

        import_trl()

    def training_work(self, rounds: int = 1) -> Work:
        """Of both answers, which the reference reads as well."""
        rows = super().training_work(rounds).trained
        return Work(trained=2 * rows, read=2 * rows)

    def run(self, case: Case) -> Removal:
        """Train on the case's pairs; the reference is the suspect model as it came.

        Raises:
            UserError: no pair is short enough, or TRL is not installed.
        """
        from unbackdoor.case import adapted
        from unbackdoor.preference_training import train_dpo

        with adapted(case, self):
            train_dpo(case, case.preferences, self, beta=self.beta)
        return Removal(self.name, rounds=1, dropped=case.dropped)
