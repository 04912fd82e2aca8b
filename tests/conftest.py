"""Settings of all tests: what they need of the machine, and that none talks to a W&B server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # at importing optuna

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # beside the checkout
# What may be missing even with --strict-skips: no package brings a GPU or the shared images.
MAY_BE_MISSING = ("gpu", "shared_data")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="skipped tests fail, except those that need a GPU or the shared data",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := missing(item):
        pytest.skip(reason)


def missing(item: pytest.Item) -> str | None:
    """What the markers of a test ask for and this machine lacks."""
    for mark in item.iter_markers("system"):
        if absent := [name for name in mark.args if find_program(name) is None]:
            return f"not installed: {', '.join(absent)} (make test-system installs them)"
        if mark.kwargs.get("root") and os.geteuid() != 0:
            return "needs root"
    for mark in item.iter_markers("shared_data"):
        for name in mark.args:
            if not (SHARED_DATA / name).is_dir():
                return f"needs the images of {SHARED_DATA / name}"
    if item.get_closest_marker("gpu") and not os.path.exists("/dev/nvidiactl"):
        return "needs an NVIDIA GPU"
    return None


def find_program(name: str) -> str | None:
    """Path of a program; those of the administrator are also found where PATH leaves their folder out."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    may_skip = any(item.get_closest_marker(name) for name in MAY_BE_MISSING)
    if item.config.getoption("--strict-skips") and report.skipped and not hasattr(report, "wasxfail") and not may_skip:
        fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if collector.config.getoption("--strict-skips") and report.skipped:
        fail(report)
    return report


def fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that says why."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skipped with --strict-skips: {reason}"
