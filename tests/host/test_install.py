"""requirements.txt installs beside what a host has, and changes none of it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.host.comfyui import PACK, find_hosts

NO_NETWORK = "after connection broken by"  # pip's words
PINNED = "transformers 4.51.3, huggingface_hub 0.30.2, numpy 1.26.4, safetensors 0.5.3, kornia 0.8.0"  # the issue's


@pytest.mark.slow
@pytest.mark.parametrize("environment", [pytest.param("host", marks=pytest.mark.comfy), "pinned"])
def test_only_absent_packages_are_installed(environment: str) -> None:
    if environment == "host" and not find_hosts():
        pytest.skip("no ComfyUI with its own Python (COMFYUI_PATH)")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.check_install", "--only", environment],
        cwd=PACK, capture_output=True, text=True, timeout=1200, check=False,
    )
    print(done.stdout)
    if done.returncode == 2 and NO_NETWORK in done.stderr:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    first, absent, changed = done.stdout.splitlines()
    assert environment == "host" or first.endswith(PINNED)
    assert re.search(r"absent, would be installed: (.*, )?psd-tools [\d.]+", absent) or environment == "host"
    assert changed.split() == ["present,", "would", "be", "changed:", "none"]
