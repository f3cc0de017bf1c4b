"""A folder of captioned pictures to try the pipeline on: `python -m train.example_photographs --out DIR`.

Photographs that scikit-image carries (its data/README.txt names their authors and licences), and icon scenes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from text2layer_core.compositing import compose
from train.data import expand
from train.icons.source import IconsConfig, IconSource
from train.icons.sprites import load_sprites

PHOTOGRAPHS = {
    "astronaut": "an astronaut in an orange suit before a flag",
    "chelsea": "a tabby cat looking into the camera",
    "coffee": "a cup of coffee on a wooden table",
    "rocket": "a rocket on its launch pad at night",
}
_BLOCK = 16


def write_photographs(folder: Path, source: IconSource, scenes: int) -> int:
    """Writes KEY.jpg with KEY.txt beside it.

    Args:
        folder: where; made if it is not there.
        source: of the icon scenes.
        scenes: how many of them.

    Returns:
        Pictures written.

    Raises:
        ValueError: scikit-image is not installed, or the number is negative.
    """
    if scenes < 0:
        raise ValueError(f"--scenes must not be negative, got {scenes}")
    try:
        from skimage import data
    except ImportError as error:
        raise ValueError("the photographs are scikit-image's: pip install scikit-image") from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in PHOTOGRAPHS.items():
        pixels: Any = getattr(data, name)()
        _write(folder / name, Image.fromarray(pixels), caption)
    for start in tqdm(range(0, scenes, _BLOCK), desc="scenes", unit="block", file=sys.stderr):
        batch = source.batch(start, min(_BLOCK, scenes - start))
        pictures = (compose(batch.image).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        for row, (pixels, caption) in enumerate(zip(pictures, batch.captions, strict=True)):
            _write(folder / f"scene-{start + row:05d}", Image.fromarray(pixels), caption)
    return len(PHOTOGRAPHS) + scenes


def _write(path: Path, picture: Image.Image, caption: str) -> None:
    picture.save(path.with_suffix(".jpg"), quality=95)
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.example_photographs", description=__doc__)
    parser.add_argument("--out", required=True, help="folder")
    parser.add_argument("--scenes", type=int, default=100, help="icon scenes beside the photographs")
    parser.add_argument("--size", type=int, default=128, help="of the scenes, pixels a side")
    parser.add_argument("--sprites", default="~/runs/icons.safetensors", help="cache of train.rasterise")
    arguments = parser.parse_args(argv)
    try:
        config = IconsConfig(cache=arguments.sprites, rotation=0.0)
        source = IconSource(load_sprites(expand(arguments.sprites)), config, arguments.size, 0, "train")
        count = write_photographs(expand(arguments.out), source, arguments.scenes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pictures in {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
