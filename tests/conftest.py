"""Every test starts from one environment, however the suite was started."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_screen_of_the_runner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of pytest-xdist are told the size of a screen, which the product would believe."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
