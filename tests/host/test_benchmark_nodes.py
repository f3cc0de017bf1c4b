"""benchmarks/nodes.py runs on every host; its ratios are for an idle machine, not for a test."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.host.comfyui import PACK, find_hosts


@pytest.mark.comfy
@pytest.mark.slow
def test_the_benchmark_runs_on_every_host() -> None:
    """The two UNets are the same network with the same weights: they draw the same latents."""
    hosts = find_hosts()
    if not hosts:
        pytest.skip("no ComfyUI with its own Python (COMFYUI_PATH)")
    for host in hosts:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.nodes", "--quick", "--host", host.version],
            cwd=PACK, capture_output=True, text=True, timeout=1200, check=False,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"host: ComfyUI {host.version}\n" in done.stdout
        difference = re.search(r"largest difference of the latents +(\S+)", done.stdout)
        assert difference is not None
        assert float(difference[1]) < 1e-4
        assert re.findall(r"^ratio: (\w+) \d+\.\d+ ", done.stdout, re.MULTILINE) == ["sampler", "generate"]
        assert re.search(r"loader node +ran, cached, cached$", done.stdout, re.MULTILINE)
        assert done.stdout.splitlines()[-1] == "reload: one run of the loader, no model loaded again: met"


def test_without_a_host_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(PACK / "tests"))
    done = subprocess.run([sys.executable, "-m", "benchmarks.nodes", "--quick"],
                          cwd=PACK, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: a ComfyUI checkout with its own Python must be there (COMFYUI_PATH, COMFYUI_PYTHON), found none"
    ]
