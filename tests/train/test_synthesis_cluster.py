"""The command on a Ray cluster by its address: one of this machine's own, on free ports, in a folder of its own."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from train.synthesize import main

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address; another Ray of this machine is left alone, so `ray stop` is not the way to end it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short, for its sockets
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
                   f"--port={port}", f"--ray-client-server-port={free_port()}",
                   "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
                   "--include-dashboard=false", "--num-cpus=2", f"--object-store-memory={100 << 20}",
                   f"--temp-dir={folder}"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=ENVIRONMENT) as process:
            assert process.stdout is not None
            started = any("Ray runtime started" in line for line in process.stdout)
            try:
                assert started
                yield f"127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait(60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
        (tmp_path / "in" / f"{index}.txt").write_text(f"thing {index}", encoding="utf-8")
    waiting = {"backend": "wait", "seconds": 0.01}
    values = {"output": str(tmp_path / "out"), "input": {"kind": "folder", "path": str(tmp_path / "in")},
              "picture": {"size": 16, "least_side": 8}, "saliency": waiting, "inpainting": waiting}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_cluster_by_its_address(cluster: str, config: Path, tmp_path: Path) -> None:
    """Its workers have the code from the command; they run elsewhere."""
    command = [sys.executable, "-m", "train.synthesize", "--config", str(config), "--set", f"engine.address={cluster}"]
    found = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, found.stdout) == (0, "6 of 6 samples kept\n"), found.stderr
    assert (tmp_path / "out" / "shard-000000.tar").is_file()


def test_an_address_where_nothing_listens(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    assert main(["--config", str(config), "--set", f"engine.address={address}"]) == 2
    assert time.monotonic() - began < 20
    message = rf"error: engine: address must be that of a Ray cluster, got {address}: \[Errno \d+\] [^\n]*refused\n"
    assert re.fullmatch(message, capfd.readouterr().err)
