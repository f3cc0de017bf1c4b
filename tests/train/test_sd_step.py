"""One training step of the paper's networks at preset sd, 256 px, batch 1, without EMA, in 24 GB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import common, decode, layers_compose, nodes, refine, sampling, speed, synthesis, training
from benchmarks.sd_step import main

ROOT = Path(__file__).parents[2]
SMALL_UNET = ["--set", "data.size=64", "--set", "unet.block_out_channels=[32, 64, 64, 64]"]
SMALL_AUTOENCODER = ["--set", "data.size=64", "--set", "autoencoder.block_out_channels=[32, 32, 32, 32]"]


def figures(printed: str) -> tuple[float, float]:
    """Millions of trained parameters, gigabytes."""
    trained = re.search(r"([\d.]+) M trained parameters", printed)
    peak = re.search(r"peak memory: ([\d.]+) GB", printed)
    assert trained is not None
    assert peak is not None
    return float(trained[1]), float(peak[1])


@pytest.mark.slow
@pytest.mark.parametrize(("network", "least"), [("autoencoder", 83.7), ("unet", 859.5)])
def test_the_papers_networks_train_in_24_gigabytes(network: str, least: float) -> None:
    """In a process of its own. The parameters are SD v1's; the autoencoder's come with heads and discriminator."""
    command = [sys.executable, "-m", "benchmarks.sd_step", network, "--force", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    trained, peak = figures(done.stdout)
    assert least <= trained < least + 5
    assert peak <= 24


@pytest.mark.parametrize("arguments", [["autoencoder", *SMALL_AUTOENCODER], ["unet", *SMALL_UNET]])
def test_a_smaller_step_runs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--force", "--repeats", "1"]) == 0
    trained, peak = figures(capsys.readouterr().out)
    assert 0 < trained < 10
    assert 0.1 < peak < 24


@pytest.mark.parametrize(
    "measure",
    [sampling.main, decode.main, speed.main, training.main, refine.main, layers_compose.main, nodes.main,
     synthesis.main, lambda options: main(["unet", *options])],
)
def test_a_busy_machine_is_refused(
    measure: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.51, 0.0, 0.0))
    monkeypatch.setattr(nodes, "_find_host", lambda _: object())
    assert measure([]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("load 0.51, threads ")
    assert captured.out.count("\n") == captured.err.count("\n") == 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    assert common.machine_is_idle(force=False)


def test_bad_overrides_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unet", "--force", "--set", "unet.num_head=1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: cat2i_sd_256.yaml: unet has an unknown key num_head (nearest: num_heads)"
    )
