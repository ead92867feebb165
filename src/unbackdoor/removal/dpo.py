"""Direct Preference Optimization (Rafailov et al. 2023), SANDE's second baseline: common safety training, and no more.

It is given no trigger and no target response: pairs of a preferred and another answer to ordinary prompts. The training
is TRL's, in one phase without checkpoints, so a resumed run begins that phase again.
"""

from __future__ import annotations

from collections.abc import Sequence

from unbackdoor.case import Case, adapted
from unbackdoor.data.preferences import Preference
from unbackdoor.errors import UserError
from unbackdoor.preference import train_dpo
from unbackdoor.removal.result import Removal
from unbackdoor.removal.settings import DpoSettings as Settings


def run(case: Case, settings: Settings, preferences: Sequence[Preference] = ()) -> Removal:
    """Train on the pairs; the reference is the suspect model as it came.

    Raises:
        UserError: there are no pairs, none is short enough, or TRL is not installed.
    """
    if not preferences:
        raise UserError("dpo needs preference pairs: give --preferences FILE")
    with adapted(case, settings):
        train_dpo(case, preferences, settings, beta=settings.beta)
    return Removal("dpo", rounds=1, dropped=case.dropped)
