"""Held-out prompts by a fixed seed, none picked by hand, on one page: `python -m train.gallery --out docs/gallery.jpg`.

Below them again those that went wrong most, and how.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from text2layer_core import metrics
from text2layer_core.checkpoint import bundled_model_path, load_checkpoint
from text2layer_core.compositing import compose
from text2layer_core.files import layer_sheet
from text2layer_core.layers import TwoLayerImage
from text2layer_core.pipeline import Text2LayerPipeline
from train.check import open_icons
from train.commands import exit_status
from train.evaluator import IconEvaluator, load_evaluator
from train.icons.source import IconSource
from train.judge import on_named_side

_COLUMNS = 2
_BEYOND = 10**9  # scenes far beyond those that training and the checks have seen
_SHEET_WIDTH = 640
_SPRITE_SIDE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 2 on bad input, 130 when it was stopped, both with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.gallery", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--sprites", type=Path, help="sprite cache (default: the one that the model's card names)")
    parser.add_argument("--count", type=int, default=24, help="held-out prompts")
    parser.add_argument("--failures", type=int, default=4, help="how many of the worst to show again below")
    parser.add_argument("--evaluator", type=Path, help="icon evaluator (default: the one beside the bundled model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, help="guidance (default: the one in the model's card)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, got {arguments.count}")
    return exit_status(lambda: draw_page(arguments), "stopped")


def draw_page(arguments: argparse.Namespace) -> None:
    """Draws the prompts and writes the page; ValueError or OSError where a file is not there or does not fit."""
    model = load_checkpoint(arguments.model or bundled_model_path())
    pipeline = Text2LayerPipeline(model)
    source = open_icons(model, "held_out", arguments.sprites)
    evaluator = load_evaluator(arguments.evaluator)
    prompts = source.captions(_BEYOND, arguments.count)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    guidance = arguments.cfg if arguments.cfg is not None else model.guidance_scale
    drawn: list[TwoLayerImage] = []
    for i, prompt in enumerate(tqdm(prompts, desc="gallery", unit="picture", file=sys.stderr)):
        drawn.append(pipeline(prompt, seed=arguments.seed + i, steps=arguments.steps, guidance_scale=guidance).layers)
    sheets = [_sheet(layers, prompt) for layers, prompt in zip(drawn, prompts, strict=True)]
    for i, reason in failures(evaluator, source, drawn)[: arguments.failures]:
        sheets.append(_sheet(drawn[i], f"{reason}: {prompts[i]}"))
    _grid(sheets).save(arguments.out, quality=88)


def failures(evaluator: IconEvaluator, source: IconSource, drawn: Sequence[TwoLayerImage]) -> list[tuple[int, str]]:
    """All pictures, the worst first, with what is wrong.

    First those that show another thing than asked for, the surest first; the nearest sprite must be another thing's
    too, since either judge alone takes an intact thing for another now and then. Then those on the other side than
    their prompt says. Then the rest, the least similar to their prompt first.
    """
    pictures, masks = torch.cat([compose(layers) for layers in drawn]), torch.cat([layers.mask for layers in drawn])
    prompts, (asked, _) = source.captions(_BEYOND, len(drawn)), source.labels(_BEYOND, len(drawn))
    scores, similarity = evaluator.thing_scores(pictures), evaluator.similarity(pictures, prompts)
    bank = metrics.sprite_bank(*source.sprites(_SPRITE_SIDE))
    nearest = metrics.nearest_sprite(torch.cat([layers.foreground for layers in drawn]), masks, bank)
    known = [evaluator.things.index(source.things[int(thing)].name) for thing in asked]
    lead = scores.amax(dim=1) - scores[range(len(drawn)), known]
    sides = on_named_side(masks, prompts)
    found: list[tuple[tuple[int, float], int, str]] = []
    for i in range(len(drawn)):
        if lead[i] > 0 and nearest[i] != asked[i]:
            found.append(((0, -float(lead[i])), i, f"seen as {evaluator.things[int(scores[i].argmax())]}"))
        elif sides[i] == 0:
            found.append(((1, float(similarity[i])), i, "on the other side"))
        else:
            found.append(((2, float(similarity[i])), i, f"similarity {float(similarity[i]):.2f}"))
    return [(i, reason) for _, i, reason in sorted(found)]


def _sheet(layers: TwoLayerImage, label: str) -> Image.Image:
    sheet = layer_sheet(layers, label)
    return sheet.resize((_SHEET_WIDTH, round(sheet.height * _SHEET_WIDTH / sheet.width)), Image.Resampling.LANCZOS)


def _grid(sheets: Sequence[Image.Image]) -> Image.Image:
    rows = -(-len(sheets) // _COLUMNS)
    height = max(sheet.height for sheet in sheets)
    page = Image.new("RGB", (_COLUMNS * _SHEET_WIDTH, rows * height), "white")
    for i, sheet in enumerate(sheets):
        page.paste(sheet, (i % _COLUMNS * _SHEET_WIDTH, i // _COLUMNS * height))
    return page


if __name__ == "__main__":
    raise SystemExit(main())
