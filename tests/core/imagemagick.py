"""ImageMagick's own compositing, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor


@cache
def command() -> str | None:
    """Version 7's command, or version 6's; Windows has another `convert`."""
    for path in filter(None, map(shutil.which, ("magick", "convert"))):
        said = subprocess.run([path, "-version"], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.startswith("Version: ImageMagick"):
            return path
    return None


def composite(folder: Path, mode: str, *pictures: Tensor) -> Tensor:
    """Pictures (1, 3 or 4, H, W) over each other, bottom first, through 16-bit files; skips the test without it."""
    program = command()
    if program is None:
        pytest.skip("ImageMagick is not installed")
    names = [folder / f"{number}.pam" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        name.write_bytes(_pam(picture))
    output = folder / "composite.pam"
    arguments = [part for name in names[1:] for part in (name, "-compose", mode.replace("-", ""), "-composite")]
    kind = "TrueColorMatte" if pictures[0].shape[1] == 4 else "TrueColor"
    subprocess.run([program, names[0], *arguments, "-depth", "16", "-type", kind, output], check=True)
    channels, (height, width) = pictures[0].shape[1], pictures[0].shape[-2:]
    data = output.read_bytes()[-height * width * channels * 2 :]
    pairs = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(height, width, channels, 2).double()
    return ((pairs[..., 0] * 256 + pairs[..., 1]) / 65535).movedim(-1, 0)[None]


def _pam(picture: Tensor) -> bytes:
    channels, height, width = picture.shape[1:]
    kind = {3: "RGB", 4: "RGB_ALPHA"}[channels]
    head = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL 65535\nTUPLTYPE {kind}\nENDHDR\n"
    values = (picture[0].movedim(0, -1).double() * 65535).round().int()
    return head.encode() + torch.stack([values // 256, values % 256], dim=-1).to(torch.uint8).numpy().tobytes()
