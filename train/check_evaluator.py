"""How well the icon evaluator sees scenes it was not trained on: `python -m train.check_evaluator --model FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from text2layer_core.compositing import compose
from text2layer_core.metrics import iou, soft_iou
from train.commands import exit_status
from train.config import parse
from train.data import DataConfig, open_source
from train.evaluator import IconEvaluator, load_evaluator, save_evaluator
from train.icons.source import IconSource

_BLOCK = 64


def held_out_figures(evaluator: IconEvaluator, source: IconSource, count: int) -> dict[str, float | int]:
    """How well it sees true scenes that it was not trained on.

    Args:
        evaluator: the networks.
        source: held-out scenes.
        count: how many.

    Returns:
        Shares in [0, 1]: things and places found (top-1) in composed pictures, captions found among 64, the segmenter's
        soft IoU, its IoU above 0.5 (scenes whose mask does not reach it left out), and its mean mask on bare
        backgrounds.
    """
    found: dict[str, list[Tensor]] = {}
    for start in tqdm(range(0, count, _BLOCK), desc="evaluator", unit="batch", file=sys.stderr):
        samples = source.batch(start, min(_BLOCK, count - start))
        image, scenes = samples.image, source.scenes(start, len(samples.captions))
        composed = compose(image)
        things = torch.tensor([evaluator.things.index(scene.thing.name) for scene in scenes])
        places = torch.tensor([evaluator.places.index(scene.place) for scene in scenes])
        captions, segmented = evaluator.similarities(composed, samples.captions), evaluator.segment(composed)
        for name, values in {
            "thing_top1": evaluator.thing_scores(composed).argmax(1) == things,
            "place_top1": evaluator.place_scores(composed).argmax(1) == places,
            "caption_top1_of_64": captions.argmax(1) == torch.arange(len(composed)),
            "segmenter_soft_iou": soft_iou(segmented, image.mask),
            "segmenter_iou": torch.where(image.mask.amax(dim=(1, 2, 3)) > 0.5, iou(segmented, image.mask), torch.nan),
            "segmenter_mask_on_backgrounds": evaluator.segment(image.background).mean(dim=(1, 2, 3)),
        }.items():
            found.setdefault(name, []).append(values.float())
    return {"scenes": count, **{name: round(float(torch.cat(values).nanmean()), 4) for name, values in found.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 2 on bad input, 130 when it was stopped, both with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.check_evaluator", description=__doc__)
    parser.add_argument("--model", type=Path, help="evaluator (default: the one beside the bundled model)")
    parser.add_argument("--scenes", type=int, default=2048, help="held-out scenes, a multiple of 64")
    parser.add_argument("--size", type=int, help="pixels a side (default: those of its card)")
    parser.add_argument("--hardware", help="what it was trained on, for the card")
    parser.add_argument("--out", type=Path, help="where to write it with these figures in its card")
    arguments = parser.parse_args(argv)
    if arguments.scenes < _BLOCK or arguments.scenes % _BLOCK:
        parser.error(f"--scenes must be a multiple of {_BLOCK}, got {arguments.scenes}")
    return exit_status(lambda: check(arguments), "stopped")


def check(arguments: argparse.Namespace) -> None:
    """Prints the figures, and writes the evaluator with them; ValueError where the model is no evaluator of icons."""
    evaluator = load_evaluator(arguments.model)
    data = parse(evaluator.card.get("data"), DataConfig, "card: data")
    source = open_source(replace(data, size=arguments.size or data.size), "held_out")
    if not isinstance(source, IconSource):
        raise ValueError(f"--model must be trained on icons, got the source {data.source}")
    figures = held_out_figures(evaluator, source, arguments.scenes)
    if arguments.out is not None:
        evaluator.card |= {"figures": figures, "hardware": arguments.hardware}
        save_evaluator(arguments.out, evaluator)
    print(json.dumps(figures))


if __name__ == "__main__":
    raise SystemExit(main())
