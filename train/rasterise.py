"""Rasterises the icons once into a cache: `python -m train.rasterise --out FILE [--packages DIR] [--things ...]`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from train.icons.sprites import SPRITE_SIZES, SpriteCache, save_sprites
from train.icons.vocabulary import ICON_SETS, icon_svgs, load_vocabulary

_SUPERSAMPLING = 2


def rasterise(svg: str, size: int) -> Tensor:
    """One icon as premultiplied RGBA bytes, (4, size, size), sharp at that size.

    Drawn at twice the size and averaged premultiplied, so that alpha is true coverage and no hairline
    remains where two shapes of the icon meet.
    """
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size * _SUPERSAMPLING, height=size * _SUPERSAMPLING)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = raw.view(image.height, image.width, 4).permute(2, 0, 1).float()
    pixels[:3] *= pixels[3:] / 255
    return functional.avg_pool2d(pixels[None], _SUPERSAMPLING)[0].round().byte()


def build_cache(packages: Path, things: Sequence[str], styles: Sequence[str], sizes: Sequence[int]) -> SpriteCache:
    """Rasterises every thing in every style at every size.

    Args:
        packages: the node_modules folder.
        things: keys, or empty for all.
        styles: names of ICON_SETS.
        sizes: sides in pixels.

    Returns:
        The cache, things in the vocabulary's order.

    Raises:
        ValueError: unknown thing, missing package, or a size below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be pixels, at least 1, got {' '.join(map(str, sizes)) or 'none'}")
    vocabulary = load_vocabulary(packages, things)
    keys = [thing.key for thing in vocabulary]
    sprites = {size: torch.empty(len(keys), len(styles), 4, size, size, dtype=torch.uint8) for size in sizes}
    with tqdm(total=len(keys) * len(styles), desc="rasterise", unit="icon", file=sys.stderr) as bar:
        for column, style in enumerate(styles):
            for row, svg in enumerate(icon_svgs(packages, style, keys)):
                for size in sizes:
                    sprites[size][row, column] = rasterise(svg, size)
                bar.update()
    return SpriteCache(vocabulary, tuple(styles), sprites)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.rasterise", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the cache, a .safetensors file")
    parser.add_argument("--packages", type=Path, default=Path(__file__).parent / "node_modules")
    parser.add_argument("--things", nargs="*", default=[], help="icon names to keep (default: all)")
    parser.add_argument("--styles", nargs="*", default=list(ICON_SETS), choices=list(ICON_SETS))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SPRITE_SIZES), help="pixels a side")
    arguments = parser.parse_args(argv)
    try:
        cache = build_cache(arguments.packages, arguments.things, arguments.styles, arguments.sizes)
        save_sprites(arguments.out, cache)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(cache.things)} things, {len(cache.styles)} styles -> {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
