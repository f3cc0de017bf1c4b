"""Prompts drawn by a fixed seed, none picked by hand, on one page: `python -m train.gallery --out docs/gallery.jpg`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from text2layer_core.checkpoint import bundled_model_path, load_checkpoint
from text2layer_core.files import layer_sheet
from text2layer_core.pipeline import Text2LayerPipeline
from train.check import open_icons

_COLUMNS = 2
_SHEET_WIDTH = 640


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m train.gallery", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--sprites", type=Path, help="sprite cache (default: the one that the model's card names)")
    parser.add_argument("--count", type=int, default=24, help="prompts, the first half of them held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, help="guidance (default: the one in the model's card)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, got {arguments.count}")
    try:
        model = load_checkpoint(arguments.model or bundled_model_path())
        pipeline = Text2LayerPipeline(model)
        half = arguments.count // 2
        # Scenes far beyond those that training and the check have seen.
        prompts = [caption for split, count in (("held_out", half), ("train", arguments.count - half))
                   for caption in open_icons(model, split, arguments.sprites).captions(10**9, count)]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        guidance = arguments.cfg if arguments.cfg is not None else float(model.card.get("guidance_scale", 7.5))
        sheets: list[Image.Image] = []
        for i, prompt in enumerate(tqdm(prompts, desc="gallery", unit="picture", file=sys.stderr)):
            output = pipeline(prompt, seed=arguments.seed + i, steps=arguments.steps, guidance_scale=guidance)
            label = f"{prompt} (held out)" if i < half else prompt
            sheet = layer_sheet(output.layers, label)
            size = (_SHEET_WIDTH, round(sheet.height * _SHEET_WIDTH / sheet.width))
            sheets.append(sheet.resize(size, Image.Resampling.LANCZOS))
        _grid(sheets).save(arguments.out, quality=88)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _grid(sheets: Sequence[Image.Image]) -> Image.Image:
    rows = -(-len(sheets) // _COLUMNS)
    height = max(sheet.height for sheet in sheets)
    page = Image.new("RGB", (_COLUMNS * _SHEET_WIDTH, rows * height), "white")
    for i, sheet in enumerate(sheets):
        page.paste(sheet, (i // rows * _SHEET_WIDTH, i % rows * height))
    return page


if __name__ == "__main__":
    raise SystemExit(main())
