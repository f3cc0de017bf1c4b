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
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from text2layer_core.checkpoint import load_checkpoint
from train.config import load_config
from train.synthesis.config import SynthesisConfig
from train.train_autoencoder import AutoencoderTrainingConfig
from train.train_diffusion import DiffusionTrainingConfig
from train.train_quality import QualityTrainingConfig

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "training.md", ROOT / "README.md"
SCHEMAS: dict[str, type[Any]] = {
    "train.synthesize": SynthesisConfig, "train.train_quality": QualityTrainingConfig,
    "train.train_autoencoder": AutoencoderTrainingConfig, "train.train_diffusion": DiffusionTrainingConfig,
}
INTERACTIVE = "train.label_quality"  # has a test in a real browser, tests/browser/test_label_quality.py


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


def printed_commands(text: str) -> list[list[str]]:
    """Words of every command of a trainer or of train.synthesize and the like that a page prints."""
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if "-m train." in line]


def paths_of(words: list[str]) -> tuple[set[str], set[str]]:
    """What a command reads and what it writes, of the paths below "~" in its arguments and config."""
    program = words[max(place for place, word in enumerate(words) if word == "-m") + 1]
    options = dict(pairwise(words))
    sets = [value for option, value in pairwise(words) if option == "--set"]
    written = {options[name] for name in ("--out", "--labels") if name in options}
    strings = {word for word in words if word.startswith("~/")}
    if program in SCHEMAS:
        config = load_config(ROOT / options["--config"], sets, SCHEMAS[program])
        written.add(config.output if isinstance(config, SynthesisConfig) else config.run)
        strings |= set(re.findall(r"(?<=')~/[^']*(?=')", repr(config)))
    return strings - written, written


@pytest.mark.parametrize(
    ("page", "start", "end", "count"),
    [(PAGE, "## In earnest", "### Many GPUs", 12), (README, "### From photographs", "### Judging", 4)],
    ids=["training.md", "README.md"],
)
def test_commands_read_what_commands_before_them_write(page: Path, start: str, end: str, count: int) -> None:
    """Or photographs and models that the page asks for; every --set fits the config."""
    commands = printed_commands(page.read_text(encoding="utf-8").partition(start)[2].partition(end)[0])
    assert len(commands) == count
    made: set[str] = set()
    for words in commands:
        read, written = paths_of(words)
        for path in read:
            there = path == "~/photographs" or path.startswith("~/models/") or any(
                path == one or path.startswith(f"{one}/") for one in made)
            assert there, f"{shlex.join(words)} reads {path}, which nothing before it writes"
        assert not written & made, words
        made |= written


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
    samples = 104
    for run in ("synthesis", "filtered"):
        manifest = json.loads((walk / run / "manifest.json").read_text())
        assert manifest["samples"] == samples
        assert manifest["complete"]
        assert (walk / run / "report.html").is_file()
        samples = manifest["kept"]  # the second run's input
    assert 16 <= samples < 104
    for kind in ("mask", "inpainting"):
        assert (walk / f"quality-{kind}" / "report.json").is_file()
    for run, images in (("autoencoder", 1600), ("diffusion", 3200)):
        rows = (walk / run / "validation.csv").read_text(encoding="utf-8").splitlines()
        assert [row.split(",")[0] for row in rows] == ["images", str(images // 2), str(images)]
        assert {"log.csv", "sheets", "tensorboard"} <= {path.name for path in (walk / run).iterdir()}
        assert load_checkpoint(walk / run / "model.safetensors").card["images"] == images
    assert Image.open(walk / "picture" / "foreground.png").mode == "RGBA"
    assert Image.open(walk / "picture" / "composed.png").size == (64, 64)
