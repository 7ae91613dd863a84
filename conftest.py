"""What holds for every test of the repository: `--fail-on-skip`, for continuous integration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SKIPPED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail where a test skips that is not marked `gpu` and does not name an absent file "
        "of shared/data beside the repository",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SKIPPED] = []
    if config.getoption("--fail-on-skip"):
        config.pluginmanager.register(_SkipWatch(config.stash[SKIPPED]))


class _SkipWatch:
    """Collect the skips that have no excuse, of tests and of whole files."""

    def __init__(self, skipped: list[str]) -> None:
        self._skipped = skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "gpu" not in report.keywords:
            self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not _names_absent_data(reason):
                self._skipped.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._skipped and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _names_absent_data(reason: str) -> bool:
    named = re.search(r"shared/data/[\w./-]*\w", reason)
    return named is not None and not (ROOT.parent / named[0]).exists()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    skipped = config.stash[SKIPPED]
    if skipped:
        terminalreporter.section("skipped without an excuse (--fail-on-skip)", red=True)
        for line in skipped:
            terminalreporter.line(line)
