"""The trial of docs/training.md, command by command as the page has them, in a home folder of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from text2layer_core.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
INTERACTIVE = "train.label_quality"  # has a test in a real browser, tests/train/test_label_quality.py


def trial_commands() -> list[str]:
    trial = PAGE.read_text(encoding="utf-8").partition("## The trial")[2].partition("## In earnest")[0]
    blocks = re.findall(r"^```\n(.*?)^```", trial, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_page_has_the_whole_way() -> None:
    programs = [re.findall(r"(?:-m )?(train\.\w+|text2layer_core|npm)", command)[0] for command in trial_commands()]
    assert programs == [
        "npm", "train.rasterise", "train.example_photographs", "train.synthesize", INTERACTIVE, "train.train_quality",
        "train.train_quality", "train.synthesize", "train.train_autoencoder", "train.train_diffusion",
        "text2layer_core",
    ]


@pytest.mark.slow
def test_every_command_of_the_trial(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("the icons come by npm, which is not here")
    environment = os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for command in trial_commands():
        if INTERACTIVE in command:
            continue
        parts = [part.replace("~", str(tmp_path), 1) if re.match(r"(\w|\.)*=?~/", part) else part
                 for part in shlex.split(command)]
        if parts[0] == "python":
            parts[0] = sys.executable
        began = time.monotonic()
        done = subprocess.run(parts, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        print(f"{time.monotonic() - began:6.1f} s  {command}")
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    walk = tmp_path / "walk"
    for run in ("synthesis", "filtered"):
        manifest = json.loads((walk / run / "manifest.json").read_text())
        assert manifest["samples"] == 104
        assert manifest["complete"]
        assert (walk / run / "report.html").is_file()
    assert 16 <= manifest["kept"] < 104
    for kind in ("mask", "inpainting"):
        assert (walk / f"quality-{kind}" / "report.json").is_file()
    assert load_checkpoint(walk / "diffusion" / "model.safetensors").card["images"] == 3200
    assert Image.open(walk / "picture" / "foreground.png").mode == "RGBA"
    assert Image.open(walk / "picture" / "composed.png").size == (64, 64)
