"""Ctrl-C everywhere, nothing for wandb, and the summary's lines on ComfyUI."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from scripts.comfyui import missing_pythons
from tests.host.comfyui import NO_HOST, find_hosts
from train import shards

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C, which tests send
os.environ["WANDB_MODE"] = "disabled"  # where it is installed, trainers use it
VERSIONS = [host.version for host in find_hosts()]


@pytest.fixture(autouse=True, scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the samples of shards lie is kept here, not in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "INDEX_FOLDER", tmp_path_factory.mktemp("shards"))
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in missing_pythons():
        terminalreporter.write_line(f"host tests: {line}")
    if not VERSIONS:
        terminalreporter.write_line(f"host tests: {NO_HOST}")
    ran = {report.nodeid for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])}
    if tested := [version for version in VERSIONS if any(f"[{version}" in name for name in ran)]:
        terminalreporter.write_line(f"host tests: ran on ComfyUI {', '.join(tested)}")
