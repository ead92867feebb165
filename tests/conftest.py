"""Every test starts from one environment, however the suite was started."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile", action="store_true", help="run the slow hostile cases too: kills, hangs, floods")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow_hostile: a hostile case with a process of its own, only with --hostile")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--hostile"):
        return
    for item in items:
        if "slow_hostile" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs --hostile"))


@pytest.fixture(autouse=True)
def no_screen_of_the_runner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of pytest-xdist are told the size of a screen, which the product would believe."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
